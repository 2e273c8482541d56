"""Measure a trained model: python scripts/evaluate.py run=outputs/… sampler=ddim"""

from betasigma.launch.scripts import APPS

main = APPS["evaluate"]

if __name__ == "__main__":
    main()
