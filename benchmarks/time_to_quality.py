"""Quality after equal wall-clock time on MNIST: ours (DDPM and NCSN) against the peers.

Each trains by its own defaults on a network of comparable size for the same number of minutes, then
draws the same number of images with the same numbers of network evaluations by a deterministic and
a stochastic sampler; one extractor measures them all. Each competitor has a process of its own; the
clock runs from its first step to its last.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, cast

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from betasigma.commands.assemble import make_sampler
from betasigma.data.datamodule import ImageDataModule
from betasigma.errors import UserError
from betasigma.options.drawing import DrawingOptions
from betasigma.pictures import save_figure
from betasigma.plot_style import (
    GREY,
    family_colours,
    legend_below,
    panels,
    plain_log_axis,
    sampler_style,
)
from betasigma.report.plots import with_seeds
from betasigma.report.rows import standard_error
from betasigma.runs.header import CHECKPOINTS, LAST, read_header
from harness import machine, ours, peers
from harness.quality import Distances, Judge, mnist_or_stand_in
from harness.report import ROOT, Report, options


class Terms(NamedTuple):
    """What all competitors share."""

    root: Path
    folder: Path
    seconds: float
    n: int
    n_reference: int
    budgets: tuple[int, ...]


ByBudget = dict[int, Distances]


class Outcome(NamedTuple):
    """What a competitor reached."""

    parameters: int
    steps: int
    batch: int
    seconds: float
    distances: dict[str, ByBudget]
    """By sampler and NFE."""


SAMPLERS: dict[str, dict[str, tuple[str, ...]]] = {
    "ddpm": {
        "ddim": ("sampler=ddim",),
        "ancestral_respaced": ("sampler=ancestral_respaced",),
    },
    "ncsn": {
        "ddim, start=moments": ("sampler=ddim", "sampler.start=moments"),
        "ancestral_respaced, start=moments": (
            "sampler=ancestral_respaced",
            "sampler.start=moments",
        ),
    },
}
"""Of ours, by family: a deterministic and a stochastic one. N(0, σ²) is far from the perturbed data
where NCSN starts, and few steps do not forget it.
"""

ETAS = {"ddim": 0.0, "ddim, eta=1": 1.0}
"""Of the peers: a deterministic and a stochastic one."""


def main(argv: Sequence[str] | None = None) -> None:
    """Let all compete and write the report."""
    chosen = options(
        __doc__,
        argv,
        ("--minutes", {"type": float, "help": "of training, each; 10 at full size, else 0.3"}),
        ("--n", {"type": int, "help": "images of each distance; 250 at full size, else 16"}),
        ("--seeds", {"type": int, "nargs": "+", "default": [0], "help": "a training of each"}),
        ("--again", {"nargs": "+", "help": "only these, once more; others as an earlier run left"}),
    )
    os.environ.setdefault("WANDB_MODE", "offline")
    report = Report("time_to_quality", chosen)
    earlier = outcomes_of(report, chosen) if chosen.again else {}
    if not chosen.again:
        shutil.rmtree(Path(chosen.out) / "time_to_quality", ignore_errors=True)
    with TemporaryDirectory() as scratch:
        terms = Terms(
            mnist_or_stand_in(chosen, Path(scratch), report),
            Path(chosen.out).resolve() / "time_to_quality",
            60 * (chosen.minutes or (10 if report.full else 0.3)),
            chosen.n or (250 if report.full else 16),
            10_000 if report.full else 64,
            (10, 20, 50, 100) if report.full else (5,),
        )
        competitors = all_competitors(Path(scratch), chosen.seeds)
        named = {name: competitors[name] for name in chosen.again or competitors}
        found, failures = compete(terms, named)
        outcomes = {n: (earlier | found)[n] for n in competitors if n in earlier | found}
        if outcomes:
            tell(report, terms, outcomes)
    report.save()
    if failures:
        raise SystemExit(f"failed: {'; '.join(failures)}")


def outcomes_of(report: Report, chosen: Any) -> dict[str, Outcome]:
    """Those of an earlier run on the same terms, but for the competitors that run again.

    Raises:
        UserError: where there is none, or a competitor is unknown.
    """
    competitors = all_competitors(Path(), chosen.seeds)
    unknown = set(chosen.again) - set(competitors)
    if unknown:
        known = ", ".join(competitors)
        raise UserError(f"--again={unknown.pop()} is unknown; choose from {known}")
    path = report.out / f"{report.name}.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    terms = {key: vars(chosen)[key] for key in ("size", "minutes", "n", "seeds")}
    content.get("options", {}).setdefault("seeds", [0])  # which it had before it could have more
    if {key: content.get("options", {}).get(key) for key in terms} != terms:
        raise UserError(f"--again needs an earlier run with the same {', '.join(terms)} in {path}")
    kept = {n: o for n, o in content["raw"]["outcomes"].items() if n not in chosen.again}
    for outcome in kept.values():
        for sampler, found in outcome["distances"].items():
            outcome["distances"][sampler] = {int(nfe): d for nfe, d in found.items()}
    return {name: Outcome(**outcome) for name, outcome in kept.items()}


Competitors = dict[str, Callable[[Terms], Outcome]]


def all_competitors(scratch: Path, seeds: Sequence[int]) -> Competitors:
    """How each competes, by name; of several seeds each is a training."""

    def of(seed: int) -> Competitors:
        return {
            "ours, DDPM": partial(run_ours, "ddpm", seed),
            "ours, NCSN": partial(run_ours, "ncsn", seed),
            "diffusers": partial(run_diffusers, seed),
            "denoising-diffusion-pytorch": partial(run_lucidrains, scratch, seed),
        }

    return {
        f"{name}{SEED}{seed}" if len(seeds) > 1 else name: compete_as
        for seed in seeds
        for name, compete_as in of(seed).items()
    }


SEED = ", seed "
"""Between the name of a competitor and the seed of its training."""


def compete(terms: Terms, competitors: Competitors) -> tuple[dict[str, Outcome], list[str]]:
    """Run the competitors one after the other; those that fail do not stop the others."""
    outcomes, failures = {}, []
    for name, compete_as in competitors.items():
        print(f"{name}: training for {terms.seconds / 60:g} minutes", flush=True)
        try:
            outcomes[name] = machine.alone(compete_as, terms)
        except Exception as error:  # whatever a library raises, the others go on
            failures.append(f"{name} ({type(error).__name__}: {error})")
    return outcomes, failures


def run_ours(family: str, seed: int, terms: Terms) -> Outcome:
    """``train.py experiment=mnist_<family> stop.minutes=…``."""
    config = ours.composed(
        [
            f"experiment=mnist_{family}",
            f"data.root={terms.root}",
            f"seed={seed}",
            "steps=1000000",
            f"stop.minutes={terms.seconds / 60}",
            "training.sample_every=1000000",  # peers draw none meanwhile either
            "evaluation=none",
            f"data.val_size={min(1000, terms.n_reference)}",
        ]
    )
    run = terms.folder / (family if seed == 0 else f"{family}_{seed}")
    made = ours.parts(config)
    trainer = ours.fit(config, made, run)
    average = made.module.average.cpu()
    judge = Judge(made.data, terms.n_reference)
    found: dict[str, ByBudget] = {}
    for name, chosen in SAMPLERS[family].items():
        for nfe in terms.budgets:
            words = [f"experiment=mnist_{family}", *chosen, f"sampler.steps={nfe}"]
            node = ours.composed([*words, f"data.root={terms.root}"])["sampler"]
            distances, taken = judge.samples(average, make_sampler(node), terms.n)
            found.setdefault(name, {})[taken] = distances
    return Outcome(
        peers.parameters(made.denoiser),
        trainer.global_step,
        config["batch_size"],
        read_header(run / CHECKPOINTS / LAST)["seconds"],
        found,
    )


def run_diffusers(seed: int, terms: Terms) -> Outcome:
    """diffusers' example with its defaults: batch 16, a cosine schedule over 100 epochs."""
    torch.manual_seed(seed)
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])
    dataset = datasets.MNIST(str(terms.root), train=True, transform=transform)
    loader = DataLoader(dataset, batch_size=16, shuffle=True)
    model = peers.diffusers_unet(peers.GREY_28["diffusers"])
    training = peers.DiffusersTraining(model, total=100 * len(loader))
    steps, start = 0, time.monotonic()
    while time.monotonic() - start < terms.seconds:
        for x, _ in loader:
            training.step(x)
            steps += 1
            if time.monotonic() - start >= terms.seconds:
                break
    seconds = time.monotonic() - start
    pipeline = training.sampler()

    def draw(k: int, nfe: int, eta: float) -> Tensor:
        drawn = pipeline(batch_size=k, num_inference_steps=nfe, eta=eta, output_type="np")
        return torch.from_numpy(drawn.images).permute(0, 3, 1, 2)

    return Outcome(peers.parameters(model), steps, 16, seconds, judged(terms, draw))


def run_lucidrains(scratch: Path, seed: int, terms: Terms) -> Outcome:
    """denoising-diffusion-pytorch's own Trainer as in its README, without flips: they would
    teach it mirrored digits.
    """
    from denoising_diffusion_pytorch import Trainer

    torch.manual_seed(seed)
    folder = scratch / "png"
    folder.mkdir(exist_ok=True)
    dataset = datasets.MNIST(str(terms.root), train=True)
    for number, image in zip(count(), dataset.data.numpy(), strict=False):
        Image.fromarray(image).save(folder / f"{number:05d}.png")
    model = peers.lucidrains_unet(peers.GREY_28["denoising-diffusion-pytorch"])
    trainer = Trainer(
        peers.lucidrains_diffusion(model, 28),
        str(folder),
        train_batch_size=32,
        train_lr=8e-5,
        train_num_steps=1,
        gradient_accumulate_every=2,
        ema_decay=0.995,
        save_and_sample_every=10**9,
        calculate_fid=False,
        augment_horizontal_flip=False,
        results_folder=str(scratch / "results"),
    )
    start = time.monotonic()
    while time.monotonic() - start < terms.seconds:
        trainer.train_num_steps = trainer.step + 5
        trainer.train()
    seconds = time.monotonic() - start
    average = trainer.ema.ema_model.model.eval()

    def draw(k: int, nfe: int, eta: float) -> Tensor:
        return cast(Tensor, peers.lucidrains_diffusion(average, 28, nfe, eta).sample(k))

    return Outcome(peers.parameters(model), trainer.step, 64, seconds, judged(terms, draw))


def judged(terms: Terms, draw: Callable[[int, int, float], Tensor]) -> dict[str, ByBudget]:
    """Distances of a peer's images by sampler and NFE.

    Args:
        draw: k images in [0, 1] by DDIM, ``draw(k, nfe, eta)``.
    """
    judge = make_judge(terms)
    found: dict[str, ByBudget] = {}
    for name, eta in ETAS.items():
        for nfe in terms.budgets:
            torch.manual_seed(0)
            images = peers.uint8_of(draw(k, nfe, eta) for k in batches(terms.n))
            found.setdefault(name, {})[nfe] = judge.images(images)
    return found


def make_judge(terms: Terms) -> Judge:
    """The judge of those who have no datamodule of ours."""
    data = ImageDataModule("mnist", terms.root)
    data.setup()
    return Judge(data, terms.n_reference)


def batches(n: int) -> list[int]:
    """n in parts of at most 250."""
    return [min(250, n - first) for first in range(0, n, 250)]


def tell(report: Report, terms: Terms, outcomes: dict[str, Outcome]) -> None:
    """Tables, targets and the plot."""
    judge = make_judge(terms)
    report.table(
        f"Trained for {terms.seconds / 60:g} minutes each",
        ["", "parameters", "optimizer steps", "batch", "images seen", "seconds"],
        [
            [name, o.parameters, o.steps, o.batch, o.steps * o.batch, o.seconds]
            for name, o in outcomes.items()
        ],
    )
    report.table(
        f"{judge.name} to the training images, n={terms.n} "
        f"(test images: {judge.floor(terms.n):.3g})",
        ["", "sampler", *(f"NFE {nfe}" for nfe in terms.budgets)],
        [
            [name, sampler, *(found[nfe]["train"] for nfe in terms.budgets)]
            for name, o in outcomes.items()
            for sampler, found in o.distances.items()
        ],
    )
    report.raw("outcomes", {name: o._asdict() for name, o in outcomes.items()})
    alone = not any(SEED in name for name in outcomes)
    report.note(
        "Learning rates, batch sizes, augmentation and averaging are those of each library's "
        "example; flips are off for denoising-diffusion-pytorch, which would otherwise learn "
        "mirrored digits. Batch size and samplers of our experiment files were chosen by trials on "
        "MNIST; the peers' examples are not written for it. "
        + ("One training each: no spread is known." if alone else "")
    )
    targets(report, terms, outcomes)
    folder = ROOT / "docs/pictures" if report.full else Path(report.out)
    told = f"{judge.name}\nto training images, n={terms.n}"
    plot(told, outcomes, judge.floor(terms.n), folder / "time_to_quality.png")


def targets(report: Report, terms: Terms, outcomes: dict[str, Outcome]) -> None:
    """Compare ours with the better of the peers."""

    def best(names: Sequence[str], nfe: int) -> float:
        found = [s[nfe]["train"] for name in names for s in outcomes[name].distances.values()]
        return min(found)

    them = [name for name in outcomes if not name.startswith("ours")]
    if not them:
        return
    for us in (name for name in outcomes if name.startswith("ours")):
        for nfe in terms.budgets:
            ratio = best([us], nfe) / best(them, nfe)
            report.target(f"distance at {nfe} NFE, {us} / better peer's", ratio, None, 1)
    name, peer = "ours, DDPM", "denoising-diffusion-pytorch"
    if {20, 100} <= set(terms.budgets) and {name, peer} <= set(outcomes):
        ratio = best([name], 20) / best([peer], 100)
        report.target(
            "our DDPM at 20 NFE / denoising-diffusion-pytorch's DDIM at 100", ratio, None, 1
        )


FAMILIES = {"ours, DDPM": "ddpm", "ours, NCSN": "ncsn"}
"""Of competitors that have the colour of one."""


def plot(metric: str, outcomes: dict[str, Outcome], floor: float, path: Path) -> None:
    """Distance against NFE: means over the trainings of each competitor, with bars of one standard
    error where there are several.
    """
    trainings: dict[str, list[Outcome]] = {}
    for name, outcome in outcomes.items():
        trainings.setdefault(name.partition(SEED)[0], []).append(outcome)
    colours = family_colours([FAMILIES.get(name, name) for name in trainings])
    with panels(1, (7.8, 4.8)) as (figure, (axes,)):
        for (name, of_it), colour in zip(trainings.items(), colours, strict=True):
            for sampler, found in of_it[0].distances.items():
                values = [[o.distances[sampler][nfe]["train"] for o in of_it] for nfe in found]
                errors = [standard_error(of_budget) or 0.0 for of_budget in values]
                stochastic = sampler.startswith("ancestral") or "eta=1" in sampler
                axes.errorbar(
                    list(found),
                    [mean(of_budget) for of_budget in values],
                    errors if any(errors) else None,
                    color=colour,
                    label=with_seeds(f"{name}, {sampler}", len(of_it)),
                    **sampler_style("ancestral" if stochastic else "ddim"),
                )
        axes.axhline(floor, color=GREY, lw=1, label="real test images (floor)")
        axes.set(xscale="log", yscale="log", ylabel=metric)
        axes.set_xlabel("network evaluations per sample (NFE)")
        for axis in (axes.xaxis, axes.yaxis):
            plain_log_axis(axis)
        legend_below(figure, [axes])
        save_figure(figure, path, DrawingOptions(formats=["png"]))


if __name__ == "__main__":
    main()
