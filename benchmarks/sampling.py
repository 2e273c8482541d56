"""Seconds per network evaluation of each sampler against bare forwards, and whole pipelines against
public peers at equal NFE.

Weights are untrained: speed does not depend on them. Samplers draw their per-sample noise; the bare
loop calls the network on one batch, under the same autocast. Peers have processes of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from betasigma.commands.assemble import make_sampler
from betasigma.denoiser import Denoiser
from harness import ours, peers
from harness.images import png_folder
from harness.report import Cell, Report, options, with_spread
from harness.timing import Apart, Step, Timings, interleaved

SAMPLERS: dict[str, tuple[str, ...]] = {
    "ancestral": ("sampler.steps=10",),
    "ddim": ("sampler.steps=10",),
    "dpm_solver": ("sampler.steps=10",),
    "euler": ("sampler.steps=10",),
    "heun": ("sampler.steps=5",),
    "predictor_corrector": ("sampler.steps=5",),
    "annealed_langevin": ("sampler.steps=5", "sampler.inner_steps=2"),
}
"""Each with about ten network evaluations."""

BATCHES = {64: tuple(SAMPLERS), 256: ("ancestral",)}
"""Samplers by batch: what does not grow with the batch weighs most in the smaller, and drawing
noise is what grows with it.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the report."""
    chosen = options(__doc__, argv, ("--rounds", {"type": int, "help": "7 at full size, else 3"}))
    report = Report("sampling", chosen)
    rounds = chosen.rounds or (7 if report.full else 3)
    torch.manual_seed(0)
    with TemporaryDirectory() as folder:
        data = png_folder(Path(folder), 20, 1, 28)
        against_forwards(report, data, rounds, BATCHES if report.full else {64: tuple(SAMPLERS)})
        report.save()
        sizes = {64: 10, 512: 2} if report.full else {16: 10}
        for n, nfe in sizes.items():
            against_peers(report, data, rounds, n, nfe)
    report.save()


def configured(data: Path, *overrides: str) -> dict[str, Any]:
    """MNIST's experiment on made-up images of the same shape."""
    return ours.composed(
        [
            "experiment=mnist_ddpm",
            "data=image_folder",
            "network=unet_28",
            "data.image_size=28",
            "data.channels=1",
            f"data.root={data}",
            *overrides,
        ]
    )


def denoiser_of(config: dict[str, Any]) -> Denoiser:
    """The averaged weights, as sampling finds them."""
    return ours.parts(config).module.average


def bare_forwards(denoiser: Denoiser, n: int, nfe: int) -> Step:
    """The network alone, ``nfe`` times."""
    x, t = torch.randn(n, *denoiser.sample_shape), torch.full((n,), 500.0)
    precision = denoiser.precision

    @torch.inference_mode()
    def run() -> None:
        with torch.autocast("cpu", precision, enabled=precision is not None):
            for _ in range(nfe):
                denoiser.network(x, t)

    return run


def against_forwards(
    report: Report, data: Path, rounds: int, batches: Mapping[int, Sequence[str]]
) -> None:
    """Samplers, by batch, against as many bare forwards."""
    rows: list[list[Cell]] = []
    worst = 0.0
    for n, names in batches.items():
        for name in names:
            config = configured(data, f"sampler={name}", *SAMPLERS[name])
            denoiser, sampler = denoiser_of(config), make_sampler(config["sampler"])
            nfe = sampler.sample(denoiser, 1).nfe
            timings = interleaved(
                {
                    "sampler": _drawing(sampler, denoiser, n),
                    "bare": bare_forwards(denoiser, n, nfe),
                },
                rounds,
            )
            ratio = timings.ratio("sampler", "bare")
            worst = max(worst, ratio)
            shown = with_spread(ratio, timings.spread("sampler", "bare"))
            rows.append([name, n, nfe, 1e3 * timings.median("sampler") / nfe, shown])
            report.raw(f"{name}, {n}", timings.seconds)
    report.table(
        "Samplers against bare forwards",
        ["sampler", "batch", "NFE", "ms an evaluation", "time / that of bare forwards"],
        rows,
    )
    report.target("slowest sampler / bare forwards, batch ≥ 64", worst, at_most=1.03)


def _drawing(sampler: Any, denoiser: Denoiser, n: int) -> Step:
    return lambda: sampler.sample(denoiser, n)


def against_peers(report: Report, data: Path, rounds: int, n: int, nfe: int) -> None:
    """DDIM of ours and of the peers, end to end: noise in, images out."""
    config = configured(data, "sampler=ddim", f"sampler.steps={nfe}")
    with (
        Apart(partial(diffusers_sampling, n, nfe)) as diffusers,
        Apart(partial(lucidrains_sampling, n, nfe)) as lucidrains,
    ):
        timings = interleaved(
            {
                "ours": _drawing(make_sampler(config["sampler"]), denoiser_of(config), n),
                "ours, fp32": _drawing(
                    make_sampler(config["sampler"]),
                    denoiser_of({**config, "hardware": {**config["hardware"], "precision": "32"}}),
                    n,
                ),
                "diffusers, fp32": diffusers,
                "denoising-diffusion-pytorch, fp32": lucidrains,
            },
            rounds,
        )
    _table(report, timings, n, nfe)


def _table(report: Report, timings: Timings, n: int, nfe: int) -> None:
    report.table(
        f"{n} images by DDIM, {nfe} NFE",
        ["", "images/s", "ours is faster by", "ours, fp32, is faster by"],
        [
            [
                name,
                n / timings.median(name),
                *(
                    with_spread(timings.ratio(name, us), timings.spread(name, us))
                    for us in ("ours", "ours, fp32")
                ),
            ]
            for name in timings.seconds
        ],
    )
    report.raw(f"{n} images, {nfe} NFE", timings.seconds)


def diffusers_sampling(n: int, nfe: int) -> Step:
    """diffusers' DDIM pipeline."""
    from diffusers import DDIMPipeline, DDIMScheduler

    model = peers.diffusers_unet(peers.GREY_28["diffusers"])
    pipeline = peers.diffusers_pipeline(
        DDIMPipeline, model, DDIMScheduler(num_train_timesteps=1000)
    )
    return lambda: pipeline(batch_size=n, num_inference_steps=nfe, output_type="np")


def lucidrains_sampling(n: int, nfe: int) -> Step:
    """denoising-diffusion-pytorch's ``sample``, which takes DDIM below 1,000 steps."""
    model = peers.lucidrains_unet(peers.GREY_28["denoising-diffusion-pytorch"])
    diffusion = peers.lucidrains_diffusion(model, 28, nfe).eval()
    return lambda: diffusion.sample(batch_size=n)


if __name__ == "__main__":
    main()
