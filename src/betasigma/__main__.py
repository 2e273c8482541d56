"""``python -m betasigma``: the program ``betasigma`` where its script is not on the PATH."""

from betasigma.launch.cli import main

if __name__ == "__main__":
    main()
