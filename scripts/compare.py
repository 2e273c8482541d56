"""Compare runs from their directories: python scripts/compare.py runs=[outputs/a,outputs/b]"""

from betasigma.launch.scripts import APPS

main = APPS["compare"]

if __name__ == "__main__":
    main()
