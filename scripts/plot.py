"""Draw a figure for a paper: python scripts/plot.py figure=filmstrip runs=[outputs/a,outputs/b]"""

from betasigma.launch.scripts import plot as main

if __name__ == "__main__":
    main()
