"""A researcher's own package: one plugin of each kind for betasigma.

python train.py plugins=[mylab] network=dit
"""

__version__ = "0.1"
