"""Draw a figure for a paper: python scripts/plot.py figure=filmstrip runs=[outputs/a,outputs/b]"""

from betasigma.launch.scripts import APPS

main = APPS["plot"]

if __name__ == "__main__":
    main()
