"""Fréchet distances of images, whoever made them, as ``scripts/evaluate.py`` measures them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from betasigma.data.datamodule import ImageDataModule
from betasigma.denoiser import DenoiserLike
from betasigma.errors import UserError
from betasigma.evaluation.choice import choose
from betasigma.evaluation.evaluator import Evaluator, Measurement
from betasigma.evaluation.features import build
from betasigma.samplers import Sampler
from harness.images import mnist
from harness.report import Report

Distances = dict[str, float]
"""By split: ``train`` and ``test``."""


class Judge:
    """One extractor and one reference for everybody.

    Args:
        data: what images are compared with.
        n_reference: images of each split that statistics are taken of.
    """

    def __init__(self, data: ImageDataModule, n_reference: int) -> None:
        extractor = build(choose("auto", None, False, data.sample_shape), data.sample_shape)
        self.data = data
        self.evaluator = Evaluator(extractor, data, ["fd"], n_reference=n_reference)
        self.name = "fid" if extractor.name == "inception" else f"fd_{extractor.name}"

    def images(self, images: Tensor | Iterable[Tensor]) -> Distances:
        """Of uint8 images ``(n, C, H, W)``."""
        return _by_split(self.evaluator.evaluate_images(images))

    def samples(self, denoiser: DenoiserLike, sampler: Sampler, n: int) -> tuple[Distances, int]:
        """Of samples 0 … n−1; and their NFE."""
        found = self.evaluator.evaluate(denoiser, sampler, n)
        assert found[0].nfe is not None
        return _by_split(found), found[0].nfe

    def floor(self, n: int) -> float:
        """What n test images score against the training images."""
        return self.evaluator.floor(n).value


def _by_split(found: list[Measurement]) -> Distances:
    return {str(m.split): m.value for m in found}


def mnist_or_stand_in(options: Any, folder: Path, report: Report) -> Path:
    """``--data-root``, or at small size made-up images whose distances mean nothing.

    Raises:
        UserError: where full size has no data.
    """
    if options.data_root:
        return Path(options.data_root).resolve()
    if report.full:
        raise UserError("--data-root must name the folder that holds MNIST, at full size")
    report.note("**Made-up images instead of MNIST: the distances mean nothing.**")
    return mnist(folder / "stand_in", 2000, 500)
