r"""DPM-Solver++(2M) and its SDE form (Lu et al. 2022, algorithm 2 and section 4.3).

With λ = log(α/σ), half the log-SNR, the probability-flow ODE and the family of SDEs that share its
marginals integrate exactly in their linear part: over h = λ_s − λ_t,

    x_s = (σ_s/σ_t)·e^{−ηh}·x_t + α_s·∫_{λ_t}^{λ_s} (1 + η)·e^{−(1+η)(λ_s−λ)}·x̂_0(λ) dλ
          + σ_s·√(1 − e^{−2ηh})·z,

η = 0 the ODE, η = 1 the SDE of the paper, whose noise is that of the forward process. What is left
to approximate is x̂_0 along the step. A constant one gives DDIM (with its η = 0 and 1); a line
through the last two, taken at the middle of the step, gives the multistep method of order 2:

    x_s = (σ_s/σ_t)·e^{−ηh}·x_t + α_s·(1 − e^{−(1+η)h})·D + σ_s·√(1 − e^{−2ηh})·z,
    D = x̂_0(λ_t) + (h/2h')·(x̂_0(λ_t) − x̂_0(λ_t')),        h' = λ_t − λ_t' the step before.

The first step has no line yet and takes D = x̂_0. One evaluation a step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Unpack

from torch import Tensor

from betasigma.options.samplers import FEW_STEPS, DPMSolverOptions, Grid, Steps
from betasigma.samplers.sampler import CountingDenoiser, Noise, Sampler, StartArguments


class DPMSolver(Sampler):
    """DPM-Solver++(2M).

    The authors' code takes ``steps`` steps from the largest noise to t_min; here these are the
    steps between ``steps`` + 1 times, and their ``denoise_to_zero`` follows.

    Args:
        eta: η ∈ [0, 1]; 0 is the ODE solver, 1 SDE-DPM-Solver++(2M).
        lower_order_final: the last step to t_min has order 1 where there are fewer than 10, as in
            their code.
        steps, clip, grid, options: see :class:`Sampler`.
    """

    name = "dpm_solver"
    repeatable = DPMSolverOptions.repeatable

    def __init__(
        self,
        eta: float = 0.0,
        steps: Steps = 20,
        clip: bool = False,
        grid: Grid = "uniform_log_snr",
        lower_order_final: bool = True,
        **options: Unpack[StartArguments],
    ) -> None:
        super().__init__(steps, clip, grid, **options)
        DPMSolverOptions.check(eta=eta, lower_order_final=lower_order_final)
        self.eta, self.lower_order_final = eta, lower_order_final

    def trajectory(self, model: CountingDenoiser, x: Tensor, rng: Noise) -> Iterator[Tensor]:
        schedule, eta = model.schedule, self.eta
        before: tuple[Tensor, float] | None = None
        times = self.times(schedule)
        first_order = times[-1] if self.lower_order_final and len(times) <= FEW_STEPS else None
        for t, s in pairwise([*times, 0.0]):
            x0 = model(x, t).x0
            if s == 0:
                yield x0
                return
            h = (schedule.log_snr(s) - schedule.log_snr(t)).item() / 2
            line = (
                x0
                if before is None or s == first_order
                else x0 + h / (2 * before[1]) * (x0 - before[0])
            )
            kept = (schedule.sigma(s) / schedule.sigma(t)).item() * math.exp(-eta * h)
            x = kept * x - schedule.alpha(s).item() * math.expm1(-(1 + eta) * h) * line
            if eta > 0:
                spread = schedule.sigma(s).item() * math.sqrt(-math.expm1(-2 * eta * h))
                x = x + spread * rng.normal(x.shape[1:], x.dtype)
            before = x0, h
            yield x
