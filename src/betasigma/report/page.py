"""One HTML file that shows runs in a browser, with all that it needs inside: it asks no network.
Where it is served, on this machine alone, it follows runs that grow.

The scripts are ES modules in ``browser/``, as they are there: an import map gives each a ``data:``
address, so that nothing is built. Plotly draws, as it has logarithmic axes, error bars, heat maps
and SVG, is well kept, and its package brings the script as one file.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from plotly.offline import get_plotlyjs

from betasigma.errors import UserError

BROWSER = Path(__file__).parent / "browser"


def render(data: dict[str, Any], refresh: float | None = None) -> str:
    """The page of :func:`betasigma.report.page_data.page_data`; with a server it asks for what is
    new after ``refresh`` seconds.
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
    for name, text in parts.items():  # a text that is filled in may have {{names}} of its own
        before, page = page.split("{{" + name + "}}")
        pieces += [before, text]
    return "".join([*pieces, page])


class PageJson(NamedTuple):
    """Data of a page as JSON, and a digest of what it shows, which the text has too."""

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


HOST = "127.0.0.1"
"""Other machines come through a tunnel, if at all."""

REFRESH = 5.0
"""Seconds after which a page asks what is new."""

OLDEST = 60.0
"""Seconds after which runs are read again even if no file has changed: a stalled run is quiet."""

NAMES = frozenset({"127.0.0.1", "localhost"})
"""Names by which a browser may ask: a page of another site that resolves to this machine may not.
"""


class Pages:
    """The page of some runs, read again when a file has changed."""

    def __init__(self, read: Callable[[], dict[str, Any]], changed: Callable[[], object]) -> None:
        self._read, self._changed = read, changed
        self._lock = threading.Lock()
        self._state: object = None
        self._data: dict[str, Any] = {}
        self._json: PageJson | None = None
        self._when = 0.0

    def data(self) -> dict[str, Any]:
        """What the page shows now."""
        with self._lock:
            return self._newest()

    def as_json(self) -> PageJson:
        """The same as JSON, for a page that follows the runs."""
        with self._lock:
            data = self._newest()
            if self._json is None:
                self._json = to_json({**data, "refresh": REFRESH})
            return self._json

    def _newest(self) -> dict[str, Any]:
        state = self._changed()
        if not self._data or state != self._state or time.monotonic() - self._when > OLDEST:
            self._data, self._state, self._when = self._read(), state, time.monotonic()
            self._json = None
        return self._data


def make_server(pages: Pages, port: int) -> ThreadingHTTPServer:
    """A server of the page at ``/`` and of its data at ``/data.json``. A page that sends the
    version of its data is sent new data only if there are any. If the runs can no longer be read,
    the answer is a sentence that says so.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
            path = self.path.partition("?")[0]
            if host not in NAMES:
                self.send_error(HTTPStatus.FORBIDDEN)
            elif path not in ("/", "/data.json"):
                self.send_error(HTTPStatus.NOT_FOUND)
            else:
                with suppress(ConnectionError):  # a browser that is closed takes no answer
                    self._answer(path)

        def _answer(self, path: str) -> None:
            try:
                if path == "/":
                    self._send("text/html; charset=utf-8", render(pages.data(), REFRESH))
                    return
                now = pages.as_json()
            except UserError as error:
                self._send("text/plain; charset=utf-8", str(error), HTTPStatus.SERVICE_UNAVAILABLE)
                return
            if self.headers.get("If-None-Match") == f'"{now.version}"':
                self._send("application/json", "", HTTPStatus.NOT_MODIFIED)
            else:
                self._send("application/json", now.text)

        def _send(self, kind: str, text: str, status: HTTPStatus = HTTPStatus.OK) -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing is printed for each request."""

    try:
        return ThreadingHTTPServer((HOST, port), Handler)
    except OSError as error:
        raise UserError(
            f"serve={port} cannot be used: {error.strerror or error}; give another port"
        ) from None


def state_of_files(paths: list[str]) -> int:
    """A digest of sizes and times of the files of runs, for :class:`Pages`."""
    found = []
    for folder, inner, files in chain.from_iterable(map(os.walk, paths)):
        inner[:] = [name for name in sorted(inner) if name != "checkpoints"]
        for name in files:
            if name.endswith((".csv", ".json", ".yaml", ".txt", ".png")):
                path = Path(folder) / name
                try:
                    state = path.stat()
                except OSError:
                    continue
                found.append((str(path), state.st_size, state.st_mtime_ns))
    return hash(tuple(found))
