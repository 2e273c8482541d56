"""Fetch what a run needs, for machines without a network: python scripts/prefetch.py data=mnist"""

from betasigma.launch.scripts import prefetch as main

if __name__ == "__main__":
    main()
