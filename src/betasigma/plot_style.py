"""How every plot looks: colour says the family, line and marker say the sampler.

The colours are those of Okabe & Ito (2008), which colour-blind readers tell apart. Settings of one
family are shades of its colour, so that a plot still says what is what in grey.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
SKY, ORANGE, GREY = "#56B4E9", "#E69F00", "#555555"

FAMILIES = {"ddpm": BLUE, "ncsn": VERMILLION, "oracle": GREEN}
"""Colour by ``model.family``."""

OTHERS = (PURPLE, SKY, ORANGE)
"""Colours of families that are not ours, in turn."""

SAMPLERS: dict[str, tuple[Any, str]] = {
    "ancestral": ("-", "o"),
    "ddim": ("--", "s"),
    "dpm_solver": ("-.", "^"),
    "heun": (":", "D"),
    "euler": ((0, (5, 1)), "v"),
    "adaptive_ode": ((0, (1, 1)), "P"),
    "annealed_langevin": ((0, (3, 1, 1, 1)), "X"),
    "predictor_corrector": ((0, (3, 1, 1, 1, 1, 1)), "<"),
}
"""Dashes and marker by a sampler's name."""

OTHER_SAMPLERS: tuple[tuple[Any, str], ...] = (((0, (7, 2)), ">"), ((0, (2, 3)), "h"))

BAND = 0.18
"""Opacity of a band: the spread over seeds, or a floor."""

PANEL = (4.2, 3.2)
"""Width and height of a panel, in inches."""

SETTINGS: Any = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "errorbar.capsize": 2.5,
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,  # text in a PDF stays text
    "svg.fonttype": "none",
    "svg.hashsalt": "betasigma",  # the same plot is the same file
}
"""matplotlib's settings."""


@contextmanager
def panels(
    number: int = 1, size: tuple[float, float] = PANEL, rows: int = 1, **more: Any
) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure with panels side by side, in this style as long as the block lasts.

    Args:
        number: of panels in a row.
        size: of each, in inches.
        rows: of panels.
        more: of matplotlib's ``Figure.subplots``.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(SETTINGS):
        figure = Figure(figsize=(size[0] * number, size[1] * rows))
        axes = figure.subplots(rows, number, squeeze=False, **more)
        yield figure, [one for row in axes for one in row]


def family_colours(families: Sequence[str]) -> list[str]:
    """A colour for each line: that of its family, in shades where a family has several."""
    others = sorted({family for family in families if family not in FAMILIES})
    base = {**FAMILIES, **{name: OTHERS[i % len(OTHERS)] for i, name in enumerate(others)}}
    seen: dict[str, int] = {}
    colours = []
    for family in families:
        place = seen[family] = seen.get(family, -1) + 1
        colours.append(_shade(base[family], place, families.count(family)))
    return colours


def sampler_style(name: str) -> dict[str, Any]:
    """Dashes and marker of a sampler's line, as arguments of matplotlib's ``plot``."""
    others = OTHER_SAMPLERS[sum(name.encode()) % len(OTHER_SAMPLERS)]
    dashes, marker = SAMPLERS.get(name, others)
    return {"linestyle": dashes, "marker": marker}


def plain_log_axis(axis: Any) -> None:
    """Have a logarithmic axis tell plain numbers: at 1, 2 and 5, or within a decade at some even
    distance. To be called when all is drawn.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    low, high = sorted(axis.get_view_interval())
    decades = math.log10(high / low)
    subs = (1, 2, 5) if decades < 4 else (1,)
    even = MaxNLocator(6, steps=(1, 2, 5, 10))
    axis.set_major_locator(even if decades < 1 else LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def legend_below(figure: Figure, axes: Sequence[Axes]) -> None:
    """One legend for all panels, below them."""
    named: dict[str, Any] = {}
    for panel in axes:
        handles, labels = panel.get_legend_handles_labels()
        named |= dict(zip(labels, handles, strict=True))
    if named:
        room = 14 * figure.get_figwidth() / (max(map(len, named)) + 8)
        columns = max(1, min(len(named), int(room)))
        figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=columns)


def _shade(colour: str, place: int, of: int) -> str:
    """A shade of a colour, from darker to lighter; of one alone the colour itself."""
    if of == 1:
        return colour
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    hue, lightness, saturation = colorsys.rgb_to_hls(red, green, blue)
    low, high = 0.6 * lightness, min(0.78, 1.9 * lightness)
    shaded = colorsys.hls_to_rgb(hue, low + (high - low) * place / (of - 1), saturation)
    return "#" + "".join(f"{round(255 * part):02x}" for part in shaded)
