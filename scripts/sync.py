"""Send runs that were logged offline to Weights & Biases: python scripts/sync.py outputs/SWEEP"""

from betasigma.launch.scripts import APPS

main = APPS["sync"]

if __name__ == "__main__":
    main()
