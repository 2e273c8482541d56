"""Draw samples from a trained model: python scripts/sample.py run=outputs/… n=64 sampler=ddim"""

from betasigma.launch.scripts import APPS

main = APPS["sample"]

if __name__ == "__main__":
    main()
