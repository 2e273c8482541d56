"""The pictures of ``figures.py``, drawn from numbers that are there already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from PIL import Image
from torch import Tensor

from betasigma import pictures
from betasigma.plot_style import BLUE, GREY
from betasigma.plot_style import VERMILLION as ORANGE
from langevin_figures.film import Film

DPI = 90

METHOD = Image.Quantize.MAXCOVERAGE
"""Keeps the colour of a thin line beside a map of many colours."""


def _write(figure: Figure, path: Path) -> None:
    """Write a PNG of at most 256 colours, which keeps it small."""
    figure.set_dpi(DPI)
    pictures.save(pictures.rendered(figure).quantize(256, METHOD), path)


# ---------------------------------------------------------------- figure 2.1


@dataclass(frozen=True)
class Strip:
    """One model's film.

    Attributes:
        title: what made it.
        film: the pictures.
        value_range: least and greatest value of clean data.
    """

    title: str
    film: Film
    value_range: tuple[float, float]


def draw_films(strips: Sequence[Strip], path: Path) -> None:
    """Each model's forward strip above its reverse strip, the same noise level in a column."""
    columns = max(len(strip.film.log_snr) for strip in strips)
    figure = Figure(figsize=(1.25 * columns + 1.3, 3.5 * len(strips)), layout="constrained")
    parts = figure.subfigures(len(strips), 1, squeeze=False)[:, 0]
    for part, strip in zip(parts, strips, strict=True):
        _draw_strip(part, strip)
    _write(figure, path)


def _draw_strip(part: SubFigure, strip: Strip) -> None:
    film = strip.film
    axes = part.subplots(2, len(film.log_snr), squeeze=False)
    part.suptitle(strip.title, fontsize=11)
    for row, images in zip(axes, (film.forward, film.reverse), strict=True):
        for cell, image in zip(row, images, strict=True):
            _show(cell, image, strip.value_range)
    for column, (log_snr, sigma) in enumerate(zip(film.log_snr, film.sigma, strict=True)):
        level = "clean" if sigma == 0 else f"log-SNR {log_snr:.1f}\nσ/α = {sigma:.3g}"
        axes[1, column].set_xlabel(level, fontsize=8)
    axes[0, 0].set_ylabel("forward q  →", fontsize=10)
    axes[1, 0].set_ylabel("←  reverse p", fontsize=10)


def _show(axes: Axes, image: Tensor, value_range: tuple[float, float]) -> None:
    low, high = value_range
    pixels = ((image - low) / (high - low)).clamp(0, 1).permute(1, 2, 0).numpy()
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[])


# ---------------------------------------------------------------- figure 2.2


@dataclass(frozen=True)
class Field:
    """A score and Langevin dynamics in it.

    Attributes:
        title: whose score.
        places, arrows: where the score was taken, and σ·score there; shape ``(m, 2)``.
        paths: beginnings of some trajectories, shape ``(steps, k, 2)``.
        states: all points after each of ``after`` steps, each of shape ``(n, 2)``.
        after: numbers of steps.
        density: log q_σ of the truth on a grid over the square, shape ``(side, side)``.
    """

    title: str
    places: Tensor
    arrows: Tensor
    paths: Tensor
    states: Sequence[Tensor]
    after: Sequence[int]
    density: Tensor


def draw_fields(fields: Sequence[Field], path: Path) -> None:
    """A row a score: the field with trajectories, then all points on their way."""
    columns = 1 + len(fields[0].after)
    figure = Figure(figsize=(3.4 * columns, 3.8 * len(fields)), layout="constrained")
    parts = figure.subfigures(len(fields), 1, squeeze=False)[:, 0]
    for part, field in zip(parts, fields, strict=True):
        axes = part.subplots(1, columns, squeeze=False)[0]
        part.suptitle(field.title, fontsize=11)
        _draw_field(axes[0], field)
        for cell, x, k in zip(axes[1:], field.states, field.after, strict=True):
            _contours(cell, field.density)
            cell.scatter(x[:, 0], x[:, 1], s=3, color=ORANGE, linewidths=0, alpha=0.6)
            cell.set_title("start" if k == 0 else f"after {k} steps", fontsize=10)
            _plane(cell)
    _write(figure, path)


def _draw_field(axes: Axes, field: Field) -> None:
    _contours(axes, field.density)
    length = np.linalg.norm(field.arrows.numpy(), axis=1)
    unit = field.arrows.numpy() / np.maximum(length, 1e-12)[:, None]
    places = field.places.numpy()
    axes.quiver(places[:, 0], places[:, 1], unit[:, 0], unit[:, 1], color=GREY, width=0.004)
    for k in range(field.paths.shape[1]):
        axes.plot(field.paths[:, k, 0], field.paths[:, k, 1], color=BLUE, lw=0.8, alpha=0.8)
    axes.plot(field.paths[0, :, 0], field.paths[0, :, 1], "o", color=BLUE, ms=4, mfc="white")
    axes.plot(field.paths[-1, :, 0], field.paths[-1, :, 1], "o", color=ORANGE, ms=4)
    steps, k = len(field.paths) - 1, field.paths.shape[1]
    axes.set_title(f"the score's direction; {k} points, {steps} steps (○ → ●)", fontsize=9)
    _plane(axes)


def _contours(axes: Axes, log_density: Tensor, color: str = GREY) -> None:
    """Contours of a density at e⁻⁶, e⁻⁴ and e⁻² of its maximum."""
    axis = np.linspace(-1, 1, log_density.shape[0])
    relative = log_density.numpy() - log_density.max().item()
    axes.contour(axis, axis, relative, levels=[-6, -4, -2], colors=color, linewidths=0.8)


def _plane(axes: Axes) -> None:
    """The square [−1, 1]², in which the data are."""
    axes.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal", xticks=[-1, 0, 1], yticks=[-1, 0, 1])
    axes.tick_params(labelsize=8)


# ---------------------------------------------------------------- section 2.2.6


@dataclass(frozen=True)
class ErrorMap:
    """Score error over the square.

    Attributes:
        title: whose score, at which σ.
        error: shape ``(side, side)``.
        density: log q_σ of the truth, the same shape.
    """

    title: str
    error: Tensor
    density: Tensor


@dataclass(frozen=True)
class ErrorBySigma:
    """Score error against σ.

    Attributes:
        label: whose score.
        sigma: noise levels, rising.
        at_modes, between: error where the data are and between the modes.
        total_variation: TV(p, q_σ).
    """

    label: str
    sigma: list[float]
    at_modes: list[float]
    between: list[float]
    total_variation: list[float]


def draw_errors(maps: Sequence[ErrorMap], curves: Sequence[ErrorBySigma], path: Path) -> None:
    """Maps of the error above; below, error and distortion against σ."""
    figure = Figure(figsize=(3.6 * max(3, len(maps)), 7.4), layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=[1.1, 1])[:, 0]
    _draw_maps(above, maps)
    left, right = below.subplots(1, 2, width_ratios=[1.6, 1])
    _draw_curves(left, curves)
    distortion = {s: tv for c in curves for s, tv in zip(c.sigma, c.total_variation, strict=True)}
    right.plot(*zip(*sorted(distortion.items()), strict=True), "-o", color=BLUE, ms=4)
    right.set(ylim=(0, 1), ylabel="TV(p, q_σ)")
    _sigma_axis(right)
    right.set_title("distortion: how far q_σ is from the data", fontsize=10)
    right.grid(alpha=0.3)
    _write(figure, path)


def _draw_maps(part: SubFigure, maps: Sequence[ErrorMap]) -> None:
    axes = list(part.subplots(1, max(3, len(maps)), squeeze=False)[0])
    while len(axes) > len(maps):
        axes.pop().set_axis_off()
    low = min(np.quantile(m.error.numpy(), 0.02) for m in maps)
    high = max(m.error.max().item() for m in maps)
    norm = LogNorm(max(low, 1e-4 * high), high)
    for cell, m in zip(axes, maps, strict=True):
        cell.imshow(m.error, origin="lower", extent=(-1, 1, -1, 1), cmap="cividis", norm=norm)
        _contours(cell, m.density, "white")
        cell.set_title(m.title, fontsize=10)
        _plane(cell)
    bar = part.colorbar(ScalarMappable(norm, "cividis"), ax=axes, shrink=0.85, pad=0.01)
    bar.set_label("error of the score, σ·‖ŝ − ∇log q_σ‖", fontsize=9)


def _draw_curves(axes: Axes, curves: Sequence[ErrorBySigma]) -> None:
    for curve, marker in zip(curves, "osD^v" * len(curves), strict=False):
        style: dict[str, Any] = {"ms": 5, "marker": marker}
        axes.plot(curve.sigma, curve.between, "-", color=ORANGE, **style)
        axes.plot(curve.sigma, curve.at_modes, "--", color=BLUE, mfc="white", **style)
        axes.plot([], [], color=GREY, ls="", label=curve.label, **style)
    axes.plot([], [], "-", color=ORANGE, label="between the modes")
    axes.plot([], [], "--", color=BLUE, label="at the modes")
    axes.set(yscale="log", ylabel="σ·‖ŝ − ∇log q_σ‖, r.m.s.")
    _sigma_axis(axes)
    axes.set_title("coverage: where the score can be trusted", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


def _sigma_axis(axes: Axes) -> None:
    """σ on a logarithmic axis, in plain numbers."""
    axes.set(xscale="log", xlabel="σ")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


# ---------------------------------------------------------------- weights of the modes


@dataclass(frozen=True)
class Recovered:
    """The weight of the lesser mode that some dynamics found.

    Attributes:
        label: which dynamics with whose score.
        points: where they ended, shape ``(n, 2)``.
        value, low, high: the weight and its 95 % interval.
    """

    label: str
    points: Tensor
    value: float
    low: float
    high: float


def draw_weights(found: Sequence[Recovered], true: float, path: Path) -> None:
    """Where the points ended, and the weights with their intervals beside the true one."""
    figure = Figure(figsize=(2.8 * len(found) + 4.4, 3.6), layout="constrained")
    *cells, axes = figure.subplots(1, len(found) + 1, width_ratios=[2.8] * len(found) + [4.4])
    for cell, f in zip(cells, found, strict=True):
        cell.scatter(f.points[:, 0], f.points[:, 1], s=3, color=ORANGE, linewidths=0, alpha=0.5)
        cell.set_title(f.label, fontsize=9)
        _plane(cell)
    places = np.arange(len(found))[::-1]
    values = [f.value for f in found]
    reach = [[f.value - f.low for f in found], [f.high - f.value for f in found]]
    axes.errorbar(values, places, xerr=reach, fmt="o", color=BLUE, capsize=3)
    axes.axvline(true, color=GREY, ls="--", lw=1)
    axes.set_yticks(places, [f.label for f in found], fontsize=8)
    axes.set(xlim=(0, 0.65), ylim=(-0.6, len(found) - 0.4))
    axes.set_xlabel("weight of the lesser mode, 95 % interval (dashed: true)", fontsize=9)
    axes.grid(alpha=0.3, axis="x")
    _write(figure, path)
