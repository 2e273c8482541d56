"""What a network that was trained on discrete noise levels knows between them.

    python benchmarks/off_levels.py LEVELS CONTINUOUS [--n 500] [--draws 8] [--extractor identity]

LEVELS and CONTINUOUS are runs of one model, trained with ``objective.times=levels`` and
``continuous``. The first is asked under each policy (``denoiser.off_levels``), the second needs
none. Printed: the denoising error ‖ε − ε̂‖²/d on the test images at the levels and half-way (in
log-SNR) between them, the same noise for all; and the Fréchet distance of samples drawn on a grid
that ignores the levels.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from betasigma.commands.assemble import make_data
from betasigma.commands.load import load_run
from betasigma.data.datamodule import ImageDataModule
from betasigma.denoiser import Denoiser, OffLevels, perturb
from betasigma.evaluation.choice import choose
from betasigma.evaluation.evaluator import Evaluator
from betasigma.evaluation.features import build
from betasigma.randomness import Stream
from betasigma.samplers import DDIM, Heun, Sampler


class Case(NamedTuple):
    """A model, and what it is told between its levels."""

    name: str
    model: Denoiser
    policy: OffLevels


def samplers(levels: int) -> dict[str, Sampler]:
    """On the levels, for reference, and off them."""
    return {
        f"DDIM {levels}, levels": DDIM(steps=levels, grid="levels", clip=True),
        "DDIM 50, uniform log-SNR": DDIM(steps=50, grid="uniform_log_snr", clip=True),
        "Heun 25, uniform log-SNR": Heun(steps=25, grid="uniform_log_snr"),
    }


def error(model: Denoiser, x0: Tensor, t: Tensor, draws: int) -> Tensor:
    """Denoising error of each image at time t, averaged over ``draws`` noises; shape ``(n,)``."""
    total = torch.zeros(len(x0))
    for draw in range(draws):
        eps = Stream("off-levels", 0, draw, indices=range(len(x0))).normal(x0.shape[1:]).to(x0)
        x_t = perturb(model.schedule, x0, t, eps)
        with torch.no_grad():
            total += (eps - model(x_t, t).eps).square().flatten(1).mean(1)
    return total / draws


def denoising(cases: list[Case], data: ImageDataModule, draws: int) -> Iterator[str]:
    """Rows of the first table: error and its standard error over images, on and between levels."""
    x0 = data.from_uint8(data.tensor("test"))
    schedule = cases[0].model.schedule
    log_snr = schedule.log_snr(schedule.times())
    middle = torch.stack([(a + b) / 2 for a, b in pairwise(log_snr)])
    places = {"at the levels": log_snr, "half-way": middle}
    yield "| model | " + " | ".join(places) + " | worst half-way, its log-SNR |"
    yield "|---|---|---|---|"
    for case in cases:
        row, found = case.name, torch.empty(0)
        with case.model.between_levels(case.policy):
            for values in places.values():
                times = schedule.t_of_log_snr(values)
                found = torch.stack([error(case.model, x0, t, draws) for t in times])
                mean = found.mean(0)
                row += f" | {mean.mean():.4f} ± {mean.std() / len(mean) ** 0.5:.4f}"
        worst = int(found.mean(1).argmax())
        yield f"| {row} | {found.mean(1)[worst]:.4f}, {middle[worst]:.2f} |"


def sampling(cases: list[Case], data: ImageDataModule, n: int, features: str) -> Iterator[str]:
    """Rows of the second table: Fréchet distance to the training images."""
    extractor = build(choose(features, None, False, data.sample_shape), data.sample_shape)
    evaluator = Evaluator(extractor, data, metrics=("fd",))
    yield f"| sampler | {' | '.join(case.name for case in cases)} | NFE |"
    yield "|---|" + "---|" * (len(cases) + 1)
    for name, sampler in samplers(cases[0].model.schedule.levels).items():
        row, nfe = name, None
        for case in cases:
            with case.model.between_levels(case.policy):
                found = evaluator.evaluate(case.model, sampler, n)
            value = next(m for m in found if m.split == "train")
            row, nfe = f"{row} | {value.value:.2f}", value.nfe
        yield f"| {row} | {nfe} |"
    floor = evaluator.floor(n)
    yield f"{floor.name}, n={n}; test images score {floor.value:.2f} at n={floor.n}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("levels", help="run with objective.times=levels")
    parser.add_argument("continuous", help="run with objective.times=continuous")
    parser.add_argument("--n", type=int, default=500, help="samples; 0 for none")
    parser.add_argument("--draws", type=int, default=8, help="noises for each test image; 0: skip")
    parser.add_argument("--extractor", default="identity", help="identity (pixels), or any other")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    discrete, continuous = load_run(options.levels), load_run(options.continuous)
    data = make_data(discrete.config)
    data.setup()
    model, reference = discrete.denoiser, continuous.denoiser
    assert isinstance(model, Denoiser)
    assert isinstance(reference, Denoiser)
    cases = [
        Case("levels, snap", model, "snap"),
        Case("levels, interpolate", model, "interpolate"),
        Case("continuous", reference, "interpolate"),
    ]
    if options.draws:
        for row in denoising(cases, data, options.draws):
            print(row, flush=True)
    if options.n:
        for row in sampling(cases, data, options.n, options.extractor):
            print(row, flush=True)


if __name__ == "__main__":
    main()
