"""Bits per dimension, and the denoising error against log-SNR, of a model on a split of its data.

Both are functions of the denoiser alone: no sampler takes part. They are measured in float32
whatever the hardware's precision, since at the smallest noise bf16 rounds away what is asked for,
and without guidance.

A likelihood is of *bytes*. Bounds take them as they are, their decoder integrates over grey levels;
the flow has a density, and takes them uniformly dequantised, over the bins that the model was
trained on (:mod:`betasigma.data.pixels`): the other ones are up to half a grey level off, which at
a smallest noise of about one grey level costs DDPM a tenth of a bit per dimension and NCSN less.
Points have no grey levels: their flow
is reported as the density's own bits per dimension, under another name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from betasigma.data import pixels
from betasigma.data.datamodule import ImageDataModule
from betasigma.data.order import subset
from betasigma.data.sources import Split
from betasigma.denoiser import Denoiser
from betasigma.evaluation.evaluator import Measurement
from betasigma.evaluation.sharding import broadcast, gather, own_share, rank_and_world_size
from betasigma.likelihood import Examples, FlowLikelihood, GaussianPrior, Terms, VariationalBound
from betasigma.objectives.error_curve import covered_grid, denoising_error
from betasigma.options.likelihoods import FITTED, LikelihoodOptions, Prior
from betasigma.oracles import ExactDenoiser
from betasigma.randomness import Stream

Progress = Callable[[float], None]


@dataclass(frozen=True)
class LikelihoodResult:
    """Likelihood of some examples.

    Attributes:
        measurements: one for each term, ``bits_per_dim/<estimator>/<term>``, with the standard
            error of the mean as ``std``.
        per_level: of the discrete bound, mean bits per dimension of each level from level 2 up.
    """

    measurements: list[Measurement]
    per_level: Tensor


@dataclass(frozen=True)
class LikelihoodMeter:
    """Measures the likelihood of some examples of a split, always the same ones.

    Args:
        estimator: a bound or the flow.
        data: where the examples are from.
        prior: ``standard`` is N(0, prior_std²·I), ``moments`` the Gaussian with the moments of
            q(x_1).
        n: number of examples, or all that there are.
        split: of the data.
        batch_size: examples at once. It changes speed and memory only, except for the adaptive
            solver of the flow.
        seed: of the dequantisation.
    """

    estimator: VariationalBound | FlowLikelihood
    data: ImageDataModule
    prior: Prior
    n: int
    split: Split = LikelihoodOptions.DEFAULTS["split"]
    batch_size: int = LikelihoodOptions.DEFAULTS["batch_size"]
    seed: int = 0

    def measure(
        self, denoiser: Denoiser | ExactDenoiser, progress: Progress | None = None
    ) -> LikelihoodResult:
        """Measure the mean of every term.

        All ranks call this together. Each takes its share of the examples, and all return the same
        result. A ``fitted`` decoder is fitted on training images, the same ones on every rank, so
        that the result is a bound for the test images.

        Raises:
            UserError: for a model of one noise level, or what the estimator refuses.
        """
        chosen = subset(self.data.size(self.split), self.n)
        n = len(chosen)
        prior = None
        if self.prior == "moments":
            moments = denoiser.moments or self.data.moments()
            prior = GaussianPrior.matched(denoiser.schedule, moments)
        with in_float32(denoiser):
            known = subset(self.data.size("train"), FITTED)
            training = self._examples(denoiser, "train", known)
            estimator = self.estimator.fitted_to(denoiser, training)
            parts = []
            share, world_size = own_share(n), rank_and_world_size()[1]
            for examples in self._examples(denoiser, self.split, chosen[share.start : share.stop]):
                parts.append(estimator.terms(denoiser, examples, prior))
                if progress is not None:
                    progress(world_size * len(examples.x0) / n)
        gathered = gather(parts)
        found = None
        if gathered is not None:
            found = self._summary(n, [terms for part in gathered for terms in part])
        return broadcast(found)  # type: ignore[return-value]

    def _summary(self, n: int, parts: list[Terms]) -> LikelihoodResult:
        points = not self.data.has_pixels
        kind = "density_bits_per_dim" if points else "bits_per_dim"
        measurements = []
        for term in parts[0].bits:
            bits = torch.cat([part.bits[term] for part in parts])
            measurements.append(
                Measurement(
                    name=f"{kind}/{self.estimator.name}/{term}",
                    value=bits.mean().item(),
                    n=n,
                    nfe=max(part.nfe for part in parts),
                    sampler=f"prior={self.prior} {self.estimator.settings}",
                    seed=self.seed,
                    split=self.split,
                    extractor="points" if points else "pixels",
                    std=bits.std().item() / n**0.5 if n > 1 else None,
                    higher_is_better=False if term == "total" else None,
                )
            )
        return LikelihoodResult(measurements, torch.cat([part.per_level for part in parts]).mean(0))

    def _examples(
        self, denoiser: Denoiser | ExactDenoiser, split: Split, numbers: np.ndarray
    ) -> Iterator[Examples]:
        data, device = self.data, denoiser.device
        low_high = denoiser.value_range
        for batch in data.examples(split, numbers, self.batch_size):
            image, index = batch["image"].to(device), batch["index"]
            x0 = spread = data.from_uint8(image)
            unit_bits = 0.0
            if data.has_pixels:
                draws = Stream("dequantize-likelihood", self.seed, indices=index, device=device)
                uniform = draws.uniform(image.shape[1:], torch.float32)
                if data.dequantize:
                    spread = pixels.dequantize(image, uniform, low_high)
                    unit_bits = pixels.dequantized_bits(low_high)
                else:
                    spread = pixels.centred(image, uniform, low_high)
                    unit_bits = pixels.centred_bits(low_high)
            y = batch["label"].to(device) if denoiser.num_classes else None
            yield Examples(x0, spread, unit_bits, index, y)


def error_curve(
    denoiser: Denoiser | ExactDenoiser,
    data: ImageDataModule,
    n: int,
    split: Split = LikelihoodOptions.DEFAULTS["split"],
    batch_size: int = LikelihoodOptions.DEFAULTS["batch_size"],
    progress: Progress | None = None,
) -> dict[float, float]:
    """Mean ‖ε − ε̂‖²/d at every whole log-SNR (of data in [−1, 1]) that the schedule covers, over n
    examples of ``split`` or all that there are. All ranks call this together; each takes its share
    of the examples, and all return the same.
    """
    chosen = subset(data.size(split), n)
    own = own_share(len(chosen))
    grid = covered_grid(denoiser.schedule, denoiser.value_range)
    sums = dict.fromkeys(grid, 0.0)
    with in_float32(denoiser), denoiser.between_levels("interpolate"):
        for batch in data.examples(split, chosen[own.start : own.stop], batch_size):
            x0 = data.from_uint8(batch["image"].to(denoiser.device))
            y = batch["label"].to(denoiser.device) if denoiser.num_classes else None
            rng = Stream("error curve", indices=batch["index"], device=denoiser.device)
            for log_snr in grid:
                error = denoising_error(denoiser, x0, y, log_snr, rng)
                sums[log_snr] += error.double().sum().item()
                if progress is not None:
                    progress(len(x0) / len(own) / len(grid))
    parts = broadcast(gather(sums))
    assert parts is not None, "rank 0 has all parts"
    return {log_snr: sum(part[log_snr] for part in parts) / len(chosen) for log_snr in grid}


@contextmanager
def in_float32(denoiser: Denoiser | ExactDenoiser) -> Iterator[None]:
    """Switch autocast off inside the block."""
    kept, denoiser.precision = denoiser.precision, None
    try:
        yield
    finally:
        denoiser.precision = kept
