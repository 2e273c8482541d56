"""Serve a page about runs on this machine alone; it follows runs that grow."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from betasigma.errors import UserError
from betasigma.report.page import render, to_json

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
    """The page of some runs, read again when a file has changed.

    Args:
        read: describes the runs.
        changed: a digest of the state of their files.
    """

    def __init__(self, read: Callable[[], dict[str, Any]], changed: Callable[[], object]) -> None:
        self._read, self._changed = read, changed
        self._lock = threading.Lock()
        self._seen: object = None
        self._data: dict[str, Any] = {}
        self._when = 0.0

    def data(self) -> dict[str, Any]:
        """What the page shows now."""
        with self._lock:
            seen = self._changed()
            if not self._data or seen != self._seen or time.monotonic() - self._when > OLDEST:
                self._data, self._seen, self._when = self._read(), seen, time.monotonic()
            return self._data


def make_server(pages: Pages, port: int) -> ThreadingHTTPServer:
    """A server of the page at ``/`` and of its data at ``/data.json``.

    Raises:
        UserError: where the port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
            if host not in NAMES:
                self.send_error(HTTPStatus.FORBIDDEN)
            elif self.path.partition("?")[0] == "/":
                self._send("text/html; charset=utf-8", render(pages.data(), REFRESH))
            elif self.path == "/data.json":
                self._send("application/json", to_json({**pages.data(), "refresh": REFRESH}))
            else:
                self.send_error(HTTPStatus.NOT_FOUND)

        def _send(self, kind: str, text: str) -> None:
            body = text.encode()
            self.send_response(HTTPStatus.OK)
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
            f"serve={port} cannot be had: {error.strerror or error}; give another port"
        ) from None


def state_of_files(paths: list[str]) -> Callable[[], object]:
    """A digest of sizes and times of the files of runs, for :class:`Pages`."""

    def digest() -> object:
        return hash(tuple(_state(Path(path)) for path in paths))

    return digest


def _state(top: Path) -> tuple[tuple[str, int, int], ...]:
    found = []
    for folder, inner, files in os.walk(top):
        inner[:] = [name for name in sorted(inner) if name != "checkpoints"]
        for name in files:
            if name.endswith((".csv", ".json", ".yaml", ".txt", ".png")):
                path = Path(folder) / name
                try:
                    state = path.stat()
                except OSError:
                    continue
                found.append((str(path), state.st_size, state.st_mtime_ns))
    return tuple(found)
