"""betasigma: DDPM and NCSN on one footing.

What a notebook needs is here by name and imported when it is asked for: ``import betasigma`` alone
imports neither PyTorch nor Hydra.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Literal

from betasigma.version import VERSION

if TYPE_CHECKING:  # for editors and type checkers: what _HOMES says
    from collections.abc import Sequence
    from pathlib import Path

    import torch

    from betasigma.denoiser import Denoiser as Denoiser
    from betasigma.denoiser import Guided as Guided
    from betasigma.denoiser import Prediction as Prediction
    from betasigma.evaluation.evaluator import Evaluator as Evaluator
    from betasigma.evaluation.features import DINOv2 as DINOv2
    from betasigma.evaluation.features import EfficientNetLite0 as EfficientNetLite0
    from betasigma.evaluation.features import FeatureExtractor as FeatureExtractor
    from betasigma.evaluation.features import InceptionV3 as InceptionV3
    from betasigma.evaluation.metrics import Coverage as Coverage
    from betasigma.evaluation.metrics import Density as Density
    from betasigma.evaluation.metrics import FrechetDistance as FrechetDistance
    from betasigma.evaluation.metrics import InceptionScore as InceptionScore
    from betasigma.evaluation.metrics import KernelDistance as KernelDistance
    from betasigma.evaluation.metrics import NeighbourRatio as NeighbourRatio
    from betasigma.evaluation.metrics import Precision as Precision
    from betasigma.evaluation.metrics import Recall as Recall
    from betasigma.evaluation.metrics import SampleMetric as SampleMetric
    from betasigma.launch.session import train as train
    from betasigma.networks.mlp import MLP as MLP
    from betasigma.networks.ncsnpp import NCSNpp as NCSNpp
    from betasigma.networks.refinenet import RefineNet as RefineNet
    from betasigma.networks.unet import UNet as UNet
    from betasigma.options import plugins as plugins
    from betasigma.oracles import EmpiricalDenoiser as EmpiricalDenoiser
    from betasigma.oracles import ExactDenoiser as ExactDenoiser
    from betasigma.oracles import GaussianMixture as GaussianMixture
    from betasigma.samplers import DDIM as DDIM
    from betasigma.samplers import AdaptiveODE as AdaptiveODE
    from betasigma.samplers import Ancestral as Ancestral
    from betasigma.samplers import AnnealedLangevin as AnnealedLangevin
    from betasigma.samplers import DPMSolver as DPMSolver
    from betasigma.samplers import Euler as Euler
    from betasigma.samplers import Heun as Heun
    from betasigma.samplers import PredictorCorrector as PredictorCorrector
    from betasigma.samplers import Sampler as Sampler
    from betasigma.schedules import NoiseSchedule as NoiseSchedule
    from betasigma.schedules import cosine as cosine
    from betasigma.schedules import geometric as geometric
    from betasigma.schedules import linear as linear
    from betasigma.schedules import sigmoid as sigmoid
    from betasigma.schedules import sub_vp_sde as sub_vp_sde
    from betasigma.schedules import vp_sde as vp_sde

__version__ = VERSION

_HOMES = {
    name: home
    for home, names in {
        "denoiser": "Denoiser Guided Prediction",
        "evaluation.evaluator": "Evaluator",
        "evaluation.features": "DINOv2 EfficientNetLite0 FeatureExtractor InceptionV3",
        "evaluation.metrics": (
            "Coverage Density FrechetDistance InceptionScore KernelDistance NeighbourRatio "
            "Precision Recall SampleMetric"
        ),
        "networks.mlp": "MLP",
        "networks.ncsnpp": "NCSNpp",
        "networks.refinenet": "RefineNet",
        "networks.unet": "UNet",
        "options": "plugins",
        "oracles": "EmpiricalDenoiser ExactDenoiser GaussianMixture",
        "samplers": (
            "DDIM AdaptiveODE Ancestral AnnealedLangevin DPMSolver Euler Heun PredictorCorrector "
            "Sampler"
        ),
        "launch.session": "train",
        "schedules": "NoiseSchedule cosine geometric linear sigmoid sub_vp_sde vp_sde",
    }.items()
    for name in names.split()
}
"""Module of each name."""

__all__ = ["load", *_HOMES]


def load(
    path: str | Path,
    *,
    device: str | torch.device = "cpu",
    which: Literal["last", "best"] = "last",
    plugins: str | Sequence[str] = (),
) -> tuple[Denoiser | ExactDenoiser, Sampler]:
    """Denoiser (averaged weights) and default sampler of a run directory or a checkpoint; of
    ``model=oracle`` the ground truth, whose data are read again.

        denoiser, sampler = betasigma.load("outputs/…")
        images = sampler.sample(denoiser, 64, seed=0).x
        prediction = denoiser(x_t, 0.5)  # t = step/levels, in [0, 1]

    Nothing in the file is executed.

    Args:
        path: the run directory or the checkpoint; a published model, which is imported to
            ``outputs/imported`` at the first time; or ``wandb:ENTITY/PROJECT/RUN``, the best
            checkpoint that Weights & Biases keeps of a run, behind ``:`` another one's alias.
        device: where the denoiser computes, ``"cuda"`` say.
        which: checkpoint of a run directory: its ``last``, or its ``best`` by the least
            ``val/denoising_error``.
        plugins: outside packages that the run may name, which are imported. None without being
            named here, in ``BETASIGMA_PLUGINS`` or by an entry point.

    Raises:
        betasigma.errors.UserError: where there is no such checkpoint, or it cannot be read.
    """
    from betasigma.commands.checks import run_or_published
    from betasigma.commands.load import load_run
    from betasigma.errors import UserError
    from betasigma.options.plugins import allow, allow_named, named_in_python
    from betasigma.runs.header import checkpoint_path

    if which not in ("last", "best"):
        raise UserError(f"which={which} must be last or best")
    allow_named()
    with named_in_python():
        allow([plugins] if isinstance(plugins, str) else plugins)
    if str(path).startswith("wandb:"):
        from betasigma.commands.wandb_checkpoint import fetch_named

        path = fetch_named(str(path))
    if which == "last":
        path = run_or_published(path, "path")
    checkpoint = checkpoint_path(path, "path", which)
    if which != "last" and checkpoint.name != f"{which}.ckpt":
        raise UserError(
            f"which={which} chooses among a run directory's checkpoints (last, best), and "
            f"path={path} is a checkpoint"
        )
    with named_in_python():
        loaded = load_run(checkpoint)
    return loaded.denoiser.to(device), loaded.sampler


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    imported = {"annotations", "importlib", "Any", "Literal", "TYPE_CHECKING", "VERSION", "version"}
    return sorted({*globals(), *__all__} - imported)
