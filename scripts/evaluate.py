"""Measure a trained model: python scripts/evaluate.py run=outputs/… sampler=ddim"""

from betasigma.launch.scripts import evaluate as main

if __name__ == "__main__":
    main()
