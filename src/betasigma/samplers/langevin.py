r"""Annealed Langevin dynamics (Song & Ermon 2019, algorithm 1).

At each noise level, from the largest to the smallest, ``inner_steps`` steps of

    x ← x + step·score + √(2·step)·z,    step_i = step·σ_i²,

so that the knob ``step`` is the paper's ε/(2·σ_L²), free of the ladder's units (their ε = 2·10⁻⁵ in
the official code's convention above and σ_L = 0.01 give 0.2; NCSNv2's 6.2·10⁻⁶ gives 0.062). NCSNv2
(Song & Ermon 2020, section 3.3 and appendix) ends with one denoising step x + σ_L²·score, the mean
of x_0 given the last x.

Langevin dynamics converges to the perturbed density q_σ in distribution, not to a point, and at a
finite step to something a few per cent wider.

On a variance-preserving schedule it runs in the variance-exploding view x/α, σ/α: the inner step
keeps its form (step·σ_t² in the units of x_t), and going from t to s multiplies the state by
α_s/α_t.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Unpack

from torch import Tensor

from betasigma.options.samplers import AnnealedLangevinOptions, Steps
from betasigma.samplers.sampler import CountingDenoiser, GridArguments, Noise, Sampler


class AnnealedLangevin(Sampler):
    """Langevin dynamics at every noise level in turn.

    Args:
        inner_steps: T, Langevin steps at each level.
        step: relative step size step_i/σ_i².
        denoise: end with NCSNv2's denoising step.
        steps, clip, options: see :class:`Sampler`; ``steps`` is the number of noise levels visited.
    """

    name = "annealed_langevin"
    repeatable = AnnealedLangevinOptions.repeatable

    def __init__(
        self,
        inner_steps: int = 100,
        step: float = 0.2,
        denoise: bool = False,
        steps: Steps = None,
        clip: bool = False,
        **options: Unpack[GridArguments],
    ) -> None:
        super().__init__(steps, clip, **options)
        AnnealedLangevinOptions.check(inner_steps=inner_steps, step=step, denoise=denoise)
        self.inner_steps, self.step_size, self.denoise = inner_steps, step, denoise

    def reached(self, times: list[float]) -> list[float]:
        return [*(t for t in times for _ in range(self.inner_steps)), 0.0]

    def trajectory(self, model: CountingDenoiser, x: Tensor, rng: Noise) -> Iterator[Tensor]:
        schedule = model.schedule
        for t, s in pairwise([*self.times(schedule), 0.0]):
            step = self.step_size * schedule.sigma(t).item() ** 2
            for _ in range(self.inner_steps):
                noise = rng.normal(x.shape[1:], x.dtype)
                x = x + step * model(x, t).score + (2 * step) ** 0.5 * noise
                yield x
            if s == 0 and self.denoise:
                x = model(x, t).x0
            else:
                x = x * (schedule.alpha(s) / schedule.alpha(t)).item()
        yield x
