"""What ``figures.py`` does: trained runs, or closed forms, become the pictures of the theory.

The plane is that of :func:`betasigma.data.toy.two`. A run of one noise level is a network trained
at one σ, and moves by plain Langevin dynamics; a run of more is annealed. Both take the same number
of evaluations.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from betasigma.commands.assemble import make_data
from betasigma.commands.config import parsed
from betasigma.commands.load import Loaded, load_run
from betasigma.data import sources as data_sets
from betasigma.data import toy
from betasigma.data.pixels import from_uint8
from betasigma.denoiser import DenoiserLike
from betasigma.devices import move_to_device, precision_of
from betasigma.display import Display
from betasigma.oracles import EmpiricalDenoiser
from betasigma.runs.files import write_json
from betasigma.runs.start import Start
from betasigma.samplers import Ancestral, AnnealedLangevin
from betasigma.schedules import geometric, linear
from langevin_figures import drawing as draw
from langevin_figures import plane
from langevin_figures.film import film, levels_to_show
from langevin_figures.options import PLANE, FiguresOptions

Content = dict[str, Any]
Rows = list[dict[str, Any]]
Table = tuple[list[str], list[list[str]]]

AFTER = (0, 20, 1000)
"""Numbers of Langevin steps whose points are shown."""

SHOWN, PATHS, DRAWN, LEVELS = 1000, 12, 60, 10
"""At most as many points, trajectories, steps of these, and noise levels are shown."""


class KnownScore(NamedTuple):
    """Someone's score.

    Attributes:
        label: whose.
        denoiser: that knows it.
    """

    label: str
    denoiser: DenoiserLike

    @property
    def single(self) -> bool:
        """Whether it is known at one noise level only."""
        return self.denoiser.schedule.levels == 1


class Plane(NamedTuple):
    """What the figures of the plane are made of.

    Attributes:
        content: the config.
        mixture: the toy distribution.
        networks: those trained on it.
    """

    content: Content
    mixture: toy.Mixture
    networks: list[KnownScore]


def draw_figures(config: DictConfig, start: Start) -> None:
    """Draw the figures asked for into a directory of their own, and write their numbers down.

    Raises:
        UserError: for bad input.
    """
    content, _ = parsed(config, FiguresOptions)
    out = start.directory
    display = Display()
    loaded = {run: load_run(run, precision_of(content["hardware"])) for run in content["runs"]}
    for model in loaded.values():
        move_to_device(model.denoiser, content["hardware"])
    flat = {run for run, model in loaded.items() if model.config["data"]["name"] == "mixture"}
    planar = Plane(
        content,
        toy.mixture(PLANE),
        [_network(loaded[run]) for run in content["runs"] if run in flat],
    )
    images = {run: model for run, model in loaded.items() if run not in flat}
    written: dict[str, Any] = {"seed": content["seed"], "runs": content["runs"]}
    for name in content["figures"]:
        path = out / f"{name}.png"
        if name == "filmstrip":
            draw_filmstrip(content, images, path)
        else:
            rows = PLANAR[name](planar, path)
            if rows:
                written[name] = rows
                display.table(name.replace("_", " "), *TABLES[name](rows))
                write_csv(rows, out / f"{name}.csv")
        display.line(f"picture {path}")
    write_json(out / "figures.json", written)
    display.line(f"numbers {out}/figures.json")


def _network(model: Loaded) -> KnownScore:
    levels = model.denoiser.schedule.levels
    kind = "one σ" if levels == 1 else f"{levels} levels"
    return KnownScore(f"network, {kind}", model.denoiser)


# ---------------------------------------------------------------- figure 2.1


def draw_filmstrip(content: Content, runs: dict[str, Loaded], path: Path) -> None:
    """Forward and reverse strip of each run, or of both families' ideal denoisers of the digits."""
    strips = [_run_strip(content, run, loaded) for run, loaded in runs.items()]
    draw.draw_films(strips or _ideal_strips(content), path)


def _run_strip(content: Content, run: str, loaded: Loaded) -> draw.Strip:
    given = {key: value for key, value in content["data"].items() if value is not None}
    data = make_data({**loaded.config, "data": {**loaded.config["data"], **given}})
    data.prepare_data()
    test = data.source("test").take(np.array([content["image"]]))["image"]
    made = film(
        loaded.denoiser,
        loaded.sampler,
        data.from_uint8(test)[0],
        content["frames"],
        content["seed"],
    )
    title = f"{Path(run).name}: {loaded.sampler.name}, {made.steps} steps"
    return draw.Strip(title, made, loaded.denoiser.value_range)


def _ideal_strips(content: Content) -> list[draw.Strip]:
    """DDPM's and NCSN's process with the ideal denoiser of the training digits."""
    train, test = (data_sets.load("digits", None, split) for split in ("train", "test"))
    images = train.take(np.arange(len(train)))["image"]
    chosen = test.take(np.array([content["image"]]))["image"]
    strips = []
    for family, schedule, value_range, sampler in (
        ("DDPM (β-schedule)", linear(), (-1.0, 1.0), Ancestral()),
        ("NCSN (σ-ladder)", geometric(), (0.0, 1.0), AnnealedLangevin(denoise=True)),
    ):
        denoiser = EmpiricalDenoiser(from_uint8(images, value_range), schedule, None, value_range)
        x0 = from_uint8(chosen, value_range)[0]
        made = film(denoiser, sampler, x0, content["frames"], content["seed"])
        title = (
            f"{family}, ideal denoiser of {len(images)} digits: {sampler.name}, {made.steps} steps"
        )
        strips.append(draw.Strip(title, made, value_range))
    return strips


# ---------------------------------------------------------------- figure 2.2


def draw_vector_field(planar: Plane, path: Path) -> Rows:
    """Plain Langevin dynamics in the exact score, and in that of each network of one σ."""
    sources = [_exact(planar, 1), *(source for source in planar.networks if source.single)]
    draw.draw_fields([_field(planar, source) for source in sources], path)
    return []


def _exact(planar: Plane, levels: int) -> KnownScore:
    """The closed form on a ladder, or at its least σ alone."""
    ladder = planar.content["sigma"]
    most = ladder["min"] if levels == 1 else ladder["max"]
    schedule = geometric(levels, most, ladder["min"])
    return KnownScore("exact score", plane.truth(planar.mixture, schedule))


def _field(planar: Plane, source: KnownScore) -> draw.Field:
    content, denoiser = planar.content, source.denoiser
    sampler = AnnealedLangevin(inner_steps=AFTER[-1], step=content["sampler"]["step"])
    walk = plane.langevin(sampler, denoiser, min(content["n"], SHOWN), content["seed"])
    states = list(islice(walk, AFTER[-1] + 1))
    places = plane.square_grid(21)
    with torch.no_grad():
        arrows = -denoiser(places, 1.0).eps
    return draw.Field(
        title=f"{source.label}, σ = {_sigma(source):.3g}",
        places=places,
        arrows=arrows,
        paths=torch.stack([x[:PATHS] for x in states[: DRAWN + 1]]),
        states=[states[k] for k in AFTER],
        after=AFTER,
        density=_density(planar, _sigma(source)),
    )


def _sigma(source: KnownScore) -> float:
    """σ/α of a source's largest noise level: of its only one, where it has one."""
    return source.denoiser.schedule.ratio(1.0).item()


def _density(planar: Plane, sigma: float) -> Tensor:
    """log q_σ on the square that pictures show, shape ``(grid, grid)``."""
    side = planar.content["grid"]
    exact = plane.truth(planar.mixture, geometric())
    return exact.log_density(plane.square_grid(side), 1.0, sigma).reshape(side, side)


# ---------------------------------------------------------------- section 2.2.6


def draw_score_error(planar: Plane, path: Path) -> Rows:
    """Where learned scores are wrong, and how far data with noise are from the data: networks, and
    the best that can be made of a few points at each σ.
    """
    ideal = _of_points(planar)
    rows = [row for source in [*planar.networks, *ideal] for row in _errors(planar, source)]
    draw.draw_errors(_maps(planar, planar.networks or ideal), _curves(rows), path)
    return rows


def _of_points(planar: Plane) -> list[KnownScore]:
    """The ideal denoiser of a few points of training data, at each σ."""
    content = planar.content
    train = data_sets.load("mixture", None, "train", mixture=PLANE, seed=content["seed"])
    points = train.take(np.arange(min(content["learned_from"], len(train))))["image"]
    label = f"ideal of {len(points)} points"
    return [
        KnownScore(label, EmpiricalDenoiser(points, geometric(1, sigma, sigma / 2)))
        for sigma in content["sigmas"]
    ]


def _errors(planar: Plane, source: KnownScore) -> Rows:
    """Score error where the data are and between the modes, at each of the model's levels."""
    content, mixture, schedule = planar.content, planar.mixture, source.denoiser.schedule
    modes = plane.at_the_modes(mixture, content["n"], content["seed"])
    gap = plane.between_the_modes(content["n"], content["seed"])
    return [
        {
            "score": source.label,
            "sigma": (sigma := schedule.ratio(t).item()),
            "at_modes": plane.score_error(source.denoiser, mixture, modes, t),
            "between": plane.score_error(source.denoiser, mixture, gap, t),
            "total_variation": plane.total_variation(mixture, sigma),
        }
        for t in levels_to_show(schedule, LEVELS)
    ]


def _curves(rows: Rows) -> list[draw.ErrorBySigma]:
    curves = []
    for label in dict.fromkeys(row["score"] for row in rows):
        own = sorted((row for row in rows if row["score"] == label), key=lambda row: row["sigma"])
        columns = {key: [row[key] for row in own] for key in own[0] if key != "score"}
        curves.append(draw.ErrorBySigma(label, **columns))
    return curves


def _maps(planar: Plane, sources: list[KnownScore]) -> list[draw.ErrorMap]:
    """Three maps, from the least σ to the greatest; of networks of one σ where there are any."""
    chosen = [source for source in sources if source.single] or sources
    places = [(s, t) for s in chosen for t in levels_to_show(s.denoiser.schedule, LEVELS)]
    places.sort(key=lambda place: place[0].denoiser.schedule.ratio(place[1]).item())
    ends = sorted({0, (len(places) - 1) // 2, len(places) - 1})
    return [_map(planar, *places[i]) for i in ends]


def _map(planar: Plane, source: KnownScore, t: float) -> draw.ErrorMap:
    side, sigma = planar.content["grid"], source.denoiser.schedule.ratio(t).item()
    grid = plane.square_grid(side)
    error = plane.score_errors(source.denoiser, planar.mixture, grid, t)
    title = f"{source.label}, σ = {sigma:.3g}"
    return draw.ErrorMap(title, error.reshape(side, side), _density(planar, sigma))


# ---------------------------------------------------------------- weights of the modes


def draw_mode_weights(planar: Plane, path: Path) -> Rows:
    """The weight of the lesser mode that plain and annealed Langevin dynamics find."""
    content, mixture = planar.content, planar.mixture
    exact = [_exact(planar, 1), _exact(planar, content["sigma"]["levels"])]
    rows, found = [], []
    for source in [*exact, *planar.networks]:
        x, row = _weights(planar, source)
        rows.append(row)
        label = f"{row['dynamics']},\n{source.label}"
        found.append(draw.Recovered(label, x, row["weight"], row["low"], row["high"]))
    draw.draw_weights(found, float(mixture.weights[0]), path)
    return rows


def _weights(planar: Plane, source: KnownScore) -> tuple[Tensor, dict[str, Any]]:
    """Where the points end, and what weight of the first mode that makes."""
    content, settings = planar.content, planar.content["sampler"]
    levels = min(content["sigma"]["levels"], source.denoiser.schedule.levels)
    steps = content["sigma"]["levels"] * settings["inner_steps"] // levels
    sampler = AnnealedLangevin(inner_steps=steps, step=settings["step"], steps=levels)
    walk = plane.langevin(sampler, source.denoiser, content["n"], content["seed"])
    x = deque(walk, maxlen=1).pop()
    share = plane.shares(x, planar.mixture)[0]
    return x, {
        "dynamics": "plain Langevin" if levels == 1 else "annealed Langevin",
        "score": source.label,
        "sigma_max": _sigma(source),
        "sigma_min": source.denoiser.schedule.ratio(source.denoiser.schedule.t_min).item(),
        "nfe": steps * levels,
        "n": share.n,
        "weight": share.value,
        "low": share.low,
        "high": share.high,
        "true": float(planar.mixture.weights[0]),
        "astray": plane.astray(x, planar.mixture),
    }


PLANAR: dict[str, Callable[[Plane, Path], Rows]] = {
    "vector_field": draw_vector_field,
    "score_error": draw_score_error,
    "mode_weights": draw_mode_weights,
}


# ---------------------------------------------------------------- numbers


def error_table(rows: Rows) -> Table:
    """Columns and cells of the score errors."""
    columns = ["score", "σ", "error at modes", "between", "TV(p, q_σ)"]
    keys = ("sigma", "at_modes", "between", "total_variation")
    return columns, [[row["score"], *(f"{row[key]:.3g}" for key in keys)] for row in rows]


def weight_table(rows: Rows) -> Table:
    """Columns and cells of the recovered weights."""
    columns = ["dynamics", "σ", "weight", "95 % interval", "n", "NFE"]
    return columns, [
        [
            f"{row['dynamics']}, {row['score']}",
            _span(row["sigma_max"], row["sigma_min"]),
            f"{row['weight']:.3f}",
            f"{row['low']:.3f} – {row['high']:.3f}",
            str(row["n"]),
            str(row["nfe"]),
        ]
        for row in rows
    ]


def _span(most: float, least: float) -> str:
    return f"{most:.3g}" if most == least else f"{most:.3g} → {least:.3g}"


TABLES: dict[str, Callable[[Rows], Table]] = {
    "score_error": error_table,
    "mode_weights": weight_table,
}


def write_csv(rows: Rows, path: Path) -> None:
    """Write rows of the same keys as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
