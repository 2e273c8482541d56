"""betasigma: DDPM and NCSN on one footing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from betasigma.version import VERSION

if TYPE_CHECKING:
    from pathlib import Path

    from betasigma.denoiser import Denoiser
    from betasigma.oracles import ExactDenoiser
    from betasigma.samplers import Sampler

__version__ = VERSION


def load(path: str | Path) -> tuple[Denoiser | ExactDenoiser, Sampler]:
    """Denoiser (averaged weights, on the CPU) and default sampler of a run directory or a
    checkpoint; of ``model=oracle`` the ground truth, whose data are read again.

        denoiser, sampler = betasigma.load("outputs/…")
        images = sampler.sample(denoiser, 64, seed=0).x

    Nothing in the file is executed.

    Raises:
        betasigma.errors.UserError: where there is no checkpoint, or it cannot be read.
    """
    from betasigma.commands.load import load_run

    loaded = load_run(path)
    return loaded.denoiser, loaded.sampler
