"""Rectified flow (Liu et al. 2023; Lipman et al. 2023): a third family, outside of betasigma.

Data and noise are joined by straight lines, x_t = (1 − τ)·x_0 + τ·ε, and the network learns the
velocity along them, dx_t/dτ = ε − x_0. Like every Gaussian process here it has α = 1 − τ and σ = τ,
so each sampler, likelihood and metric of betasigma takes it as it is.

    python train.py plugins=[rectified_flow] model=rectified_flow
"""

__version__ = "1.0"
