"""Compare runs on a page: python scripts/dashboard.py runs=outputs"""

from betasigma.launch.scripts import APPS

main = APPS["dashboard"]

if __name__ == "__main__":
    main()
