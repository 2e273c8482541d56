"""Measure likelihood and denoising error; log, draw and print them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger

from betasigma.build import Config, make
from betasigma.commands.measure import Result, label, log_measurements, rank_and_world_size
from betasigma.data.datamodule import ImageDataModule
from betasigma.denoiser import Denoiser
from betasigma.display import Display
from betasigma.errors import UserError
from betasigma.evaluation.likelihood import LikelihoodMeter, error_curve
from betasigma.options.likelihoods import MEASURED
from betasigma.options.training import AT_LOG_SNR, DENOISING_ERROR
from betasigma.oracles import ExactDenoiser
from betasigma.report.plots import ErrorCurve, draw_error_curves, draw_levels
from betasigma.runs.record import format_settings
from betasigma.training.tracking import log_values

ESTIMATOR = ("name", "settings", "fitted_to", "terms")
"""What a likelihood has, of whatever class it is."""


def measure_likelihood(
    node: Config | None,
    seed: int,
    denoiser: Denoiser | ExactDenoiser,
    data: ImageDataModule,
    loggers: list[Logger],
    display: Display,
    step: int,
    prefix: str,
    out: Path,
) -> list[Result]:
    """Measure what the ``likelihood`` node names. All ranks call it together.

    Args:
        prefix: of the metrics' names.
        out: directory for ``bits_per_level.png``, which a discrete bound draws.

    Returns:
        Lines of the table, with standard errors. Empty without a node.
    """
    if node is None:
        return []
    settings = {key: node[key] for key in MEASURED}
    meter = LikelihoodMeter(make_estimator(node, seed), data, **settings, seed=seed)
    with display.share(f"likelihood of {node['n']} examples") as progress:
        found = meter.measure(denoiser, *rank_and_world_size(), progress=progress)
    options = {k: v for k, v in node.items() if k not in ("_target_", "n", "split", "batch_size")}
    log_measurements(
        loggers, found.measurements, step, prefix, {"settings": format_settings(options)}
    )
    if len(found.per_level) and loggers:
        draw_levels(found.per_level.tolist(), found.measurements[0].n, out / "bits_per_level.png")
        display.line(f"bits/dim by level {out}/bits_per_level.png")
    if meter.estimator.name == "flow":
        ratio = denoiser.schedule.ratio(denoiser.schedule.t_min).item()
        display.line(
            f"flow: likelihood of data with the smallest noise on them, sigma/alpha = {ratio:.3g}; "
            f"not a bound on that of clean data"
        )
    return [Result(label(m), m.value, m.n, m.nfe, m.std) for m in found.measurements]


def make_estimator(node: Config, seed: int) -> Any:
    """Make the bound or flow that a ``likelihood`` node names.

    Raises:
        UserError: if it is none.
    """
    own = {key: value for key, value in node.items() if key not in MEASURED}
    made = make(own, "likelihood", offered={"seed": seed})
    if lacking := [name for name in ESTIMATOR if not hasattr(made, name)]:
        raise UserError(
            f"likelihood._target_={node['_target_']} gives {type(made).__name__}, which has no "
            f"{' and no '.join(lacking)}: a likelihood has {', '.join(ESTIMATOR)}"
        )
    return made


def measure_error_curve(
    n: int,
    denoiser: Denoiser | ExactDenoiser,
    data: ImageDataModule,
    loggers: list[Logger],
    display: Display,
    step: int,
    out: Path,
    label: str,
    family: str,
) -> None:
    """Log the denoising error of n test examples at every whole log-SNR, and draw it. All ranks
    call it together.
    """
    with display.share(f"denoising error of {n} examples") as progress:
        ranks = rank_and_world_size()
        curve = error_curve(denoiser, data, n, progress=progress, ranks=ranks)
    if not loggers:
        return
    values = {f"eval{AT_LOG_SNR}{at:+.0f}": error for at, error in curve.items()}
    context = {"n": min(n, data.size("test")), "nfe": len(curve), "split": "test"}
    log_values(loggers, values, step, context)
    curves = [ErrorCurve(label, family, [curve], f"n={context['n']} test examples")]
    path = draw_error_curves(curves, out / f"{DENOISING_ERROR}.png")
    display.line(f"denoising error by log-SNR {path}")
