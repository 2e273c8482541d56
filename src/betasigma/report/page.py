"""One HTML file that shows runs in a browser, with all that it needs inside: it asks no network.

The scripts are ES modules in ``browser/``, as they are there: an import map gives each a ``data:``
address, so that nothing is built. Plotly draws, as it has logarithmic axes, error bars, heat maps
and SVG, is well kept, and its package brings the script as one file.
"""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

from plotly.offline import get_plotlyjs

BROWSER = Path(__file__).parent / "browser"
"""Folder of the page's own files."""


def render(data: dict[str, Any], refresh: float | None = None) -> str:
    """The page.

    Args:
        data: what it shows, see :func:`betasigma.report.page_data.page_data`.
        refresh: seconds after which the page asks its server for what is new; ``None`` without one.
    """
    address = "data:text/javascript;base64,"
    modules = {
        f"page/{path.name}": address + base64.b64encode(path.read_bytes()).decode()
        for path in sorted(BROWSER.glob("*.js"))
    }
    parts = {
        "style": (BROWSER / "style.css").read_text(encoding="utf-8"),
        "plotly": get_plotlyjs(),
        "modules": json.dumps({"imports": modules}),
        "data": in_script(to_json({**data, "refresh": refresh}).text),
    }
    page = (BROWSER / "page.html").read_text(encoding="utf-8")
    pieces = []
    for name, text in parts.items():  # what is filled in is not looked at for names of others
        before, page = page.split("{{" + name + "}}")
        pieces += [before, text]
    return "".join([*pieces, page])


class PageJson(NamedTuple):
    """Data of a page as JSON.

    Attributes:
        text: the JSON, which has the version too.
        version: a digest of what the page shows.
    """

    text: str
    version: str


def to_json(data: dict[str, Any]) -> PageJson:
    """Write the data of a page as JSON."""
    shown = {key: value for key, value in data.items() if key != "built"}
    content = json.dumps(shown, allow_nan=False, separators=(",", ":"))
    version = hashlib.sha256(content.encode()).hexdigest()[:16]
    about = json.dumps({"built": data["built"], "version": version})
    return PageJson(f"{about[:-1]},{content[1:]}", version)


def in_script(text: str) -> str:
    """JSON that no HTML parser takes for markup."""
    return text.replace("<", "\\u003c")
