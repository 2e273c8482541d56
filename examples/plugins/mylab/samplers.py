"""Restart sampling (Xu et al. 2023, algorithm 1): Heun's steps, interrupted to add noise."""

from itertools import pairwise

import torch
from torch import Tensor

from betasigma.options.samplers import Dtype, Grid, Start
from betasigma.samplers import CountingDenoiser, Heun, Noise, Sampler
from betasigma.schedules import transition
from mylab.options import RestartOptions


class Restart(Sampler):
    """Where σ/α has fallen to ``low``, go back to ``high`` by the forward process and integrate
    the same stretch again, ``restarts`` times: fresh noise contracts the errors made so far.

    Args:
        low, high: the stretch, in σ/α.
        restarts: K.
        inner: Heun steps of a stretch, even in log σ/α.
        steps, clip, grid, rho, start, dtype, ratio_max: see :class:`betasigma.samplers.Sampler`.
    """

    name = "restart"

    def __init__(
        self,
        low: float = 0.2,
        high: float = 1.0,
        restarts: int = 2,
        inner: int = 4,
        steps: int | None = 18,
        clip: bool = False,
        grid: Grid = "karras",
        rho: float = 7.0,
        start: Start = "prior",
        dtype: Dtype = "float32",
        ratio_max: float | None = None,
    ) -> None:
        super().__init__(steps, clip, grid, rho, start, dtype, ratio_max)
        RestartOptions.check(low=low, high=high, restarts=restarts, inner=inner)
        self.low, self.high, self.restarts, self.inner = low, high, restarts, inner
        self._heun = Heun()

    def step(self, model: CountingDenoiser, x: Tensor, t: float, s: float, rng: Noise) -> Tensor:
        x = self._heun.step(model, x, t, s, rng)
        schedule = model.schedule
        if s == 0 or not schedule.ratio(s) <= self.low < schedule.ratio(t):
            return x
        top = schedule.t_of_ratio(min(self.high, schedule.ratio(1.0).item())).item()
        first, last = schedule.log_snr(top).item(), schedule.log_snr(s).item()
        log_snr = torch.linspace(first, last, self.inner + 1, dtype=torch.float64)
        stretch = [top, *schedule.t_of_log_snr(log_snr[1:-1]).tolist(), s]
        kept, variance = (c.item() for c in transition(schedule, top, s))
        for _ in range(self.restarts):
            x = kept * x + variance**0.5 * rng.normal(x.shape[1:], x.dtype)
            for u, v in pairwise(stretch):
                x = self._heun.step(model, x, u, v, rng)
        return x
