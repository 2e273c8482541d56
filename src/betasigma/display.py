"""Show progress and results: a live bar on a terminal, plain lines in a log file.

Every line also goes to the logger ``betasigma``, which Hydra writes to the run's log.txt.
"""

from __future__ import annotations

import logging
import math
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from betasigma.errors import plain_warning, printed

PLAIN_SECONDS = 20.0
"""Shortest time between two progress lines in a log file."""

NOTE_SECONDS = 5.0
"""Shortest time between two notes of how far a piece of work is."""

FILE_WIDTH = 120
"""Width of a table that is written to a file or a pipe."""

NUMBER = 7
"""Width of most numbers in a table, which a header has beside them too."""

NAME = 20
"""Least width of the names of a table's rows, and the longest word that is kept whole beside."""

log = logging.getLogger("betasigma")
log.addHandler(logging.NullHandler())


class Bold(str):
    """A cell of a table that stands out: bold on a terminal, with a star elsewhere."""


class _Console(Console):
    """One that ends as by SIGPIPE where nobody reads what is printed; Rich's ends with status 1."""

    def on_broken_pipe(self) -> None:
        with printed():
            raise BrokenPipeError


class Update(Protocol):
    """Shows how far some work is."""

    def __call__(self, done: int, note: str, left: float | None = None) -> None:
        """Args:
        done: units of the whole.
        note: how it goes.
        left: seconds until it ends; ``None``: at the speed so far.
        """


class Display:
    """Shows progress: bars on a terminal, elsewhere one line every ``PLAIN_SECONDS``.

    Args:
        quiet: print nothing. Ranks other than 0 are quiet.
        note: is told now and then how far a piece of work is: its name, units done, all units,
            units per second.

    Attributes:
        meanwhile: called now and then while work goes on, by whoever does it.
    """

    def __init__(
        self, quiet: bool = False, note: Callable[[str, int, int, float], None] | None = None
    ) -> None:
        self._note = note if not quiet else None
        self.meanwhile: Callable[[], None] = lambda: None
        self.console = _Console(quiet=quiet, soft_wrap=True)
        if not self.console.is_terminal:
            self.console.width = max(self.console.width, FILE_WIDTH)
        self._quiet = quiet
        self._live = self.console.is_terminal and not quiet
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[note]}"),
            TextColumn("{task.fields[left]}"),
            console=self.console,
            transient=True,
        )
        self._open = 0

    def line(self, text: str) -> None:
        """Print one line."""
        self.console.print(text, markup=False, highlight=False)
        self._log(text)

    def table(
        self, title: str, columns: list[str], rows: list[list[str]], words: Collection[str] = ()
    ) -> None:
        """Print a small table. The first column and those of ``words`` hold text, the others
        numbers.
        """
        widths = [
            max(min(NUMBER, _longest([column])), _longest(row[n] for row in rows))
            for n, column in enumerate(columns)
        ]
        for part in self._parts(widths):
            table = Table(title=title, title_justify="left")
            for number in part:
                left = number == 0 or columns[number] in words
                table.add_column(
                    columns[number],
                    justify="left" if left else "right",
                    overflow="fold",
                    min_width=min(NAME, widths[number]) if number else None,
                )
            for row in rows:
                table.add_row(*(self._shown(row[number]) for number in part))
            self._keep_names_whole(table, [row[0] for row in rows])
            self.console.print(table)
        for row in rows:
            self._log(f"{title}: {' '.join(cell for cell in row if cell)}")

    def _parts(self, widths: Sequence[int]) -> list[list[int]]:
        """Columns of a table by number, those of several below one another where one would be too
        wide for its numbers; the first is in all.

        Args:
            widths: of the longest word in each column.
        """
        parts: list[list[int]] = [[0]]
        name = min(max(NAME, widths[0]), self.console.width // 2)
        room = left = self.console.width - name - 4
        for number, width in list(enumerate(widths))[1:]:
            needed = min(NAME, width) + 3
            if needed > left and len(parts[-1]) > 1:
                parts.append([0])
                left = room
            parts[-1].append(number)
            left -= needed
        return parts

    def _keep_names_whole(self, table: Table, names: Sequence[str]) -> None:
        """Have the other columns of a table that is too wide give way to long names, where numbers
        still fit into them: the names in the first are pasted.
        """
        unbound = self.console.options.update(max_width=sys.maxsize)
        if self.console.measure(table, options=unbound).maximum <= self.console.width:
            return
        first, *others = table.columns
        longest = _longest(names)
        room = self.console.width - longest - 4 - 3 * len(others)
        spare = room - sum(column.min_width or 0 for column in others)
        if others and spare >= 0 and room // len(others) < longest:
            first.min_width = longest
            for column in others:
                column.max_width = (column.min_width or 0) + spare // len(others)

    def _shown(self, cell: str) -> Text:
        """A cell as it is: brackets in it are no markup."""
        if not isinstance(cell, Bold):
            return Text(cell)
        return Text(cell, "bold") if self.console.is_terminal else Text(f"{cell} *")

    @contextmanager
    def work(self, what: str, total: int, done: int = 0) -> Iterator[Update]:
        """Show progress as a count of ``total`` units.

        Yields:
            ``update(done, note)``, see :class:`Update`.
        """
        with self._work(what, total, done, lambda n: f"{n}/{total}") as update:
            yield update

    @contextmanager
    def _work(
        self, what: str, total: int, done: int, count: Callable[[int], str], ends: bool = True
    ) -> Iterator[Update]:
        """Show progress; in a log file the end has a line of its own, or only if ``ends``."""
        begun, start = done, time.monotonic()
        last, ended = start, False

        def told(n: int, left: float | None) -> str:
            passed = time.monotonic() - start
            seconds = (total - n) * passed / max(1, n - begun) if left is None else left
            return f"{clock(seconds)} left"

        def print_line(done: int, note: str, left: float | None = None) -> None:
            nonlocal last, ended
            look(done)
            now = time.monotonic()
            end = done >= total and not ended and (ends or last > start)
            if now - last < PLAIN_SECONDS and not end:
                return
            last, ended = now, done >= total
            write = self._log if self._live else self.line
            write(f"{what} {count(done)}  {note}  {told(done, left)}")

        with ExitStack() as stack:
            look = stack.enter_context(self._noted(what, total, done))
            if not self._live:
                yield print_line
                return
            task = stack.enter_context(self._bar(what, total, done, count(done)))

            def update(done: int, note: str, left: float | None = None) -> None:
                self._progress.update(
                    task, completed=done, note=note, count=count(done), left=told(done, left)
                )
                print_line(done, note, left)

            yield update

    @contextmanager
    def _noted(self, what: str, total: int, done: int) -> Iterator[Callable[[int], None]]:
        """Tell ``note`` how far a piece of work is: at its beginning, now and then, at its end."""
        start = told = time.monotonic()
        seen = done

        def tell() -> None:
            nonlocal told
            told = time.monotonic()
            if self._note is not None:
                self._note(what, seen, total, (seen - done) / max(told - start, 1e-9))

        def look(n: int) -> None:
            nonlocal seen
            seen = n
            self.meanwhile()
            if time.monotonic() - told >= NOTE_SECONDS:
                tell()

        tell()
        try:
            yield look
        finally:
            tell()

    @contextmanager
    def share(self, what: str, ends: bool = True) -> Iterator[Callable[[float], None]]:
        """Show progress in percent.

        Args:
            what: the work.
            ends: whether a log file has a line of its end in any case, or only after another.

        Yields:
            ``advance(share)``, which adds a share of the whole.
        """
        total, done = 1000, 0.0
        with self._work(what, total, 0, lambda n: f"{100 * n // total} %", ends) as update:

            def advance(share: float) -> None:
                nonlocal done
                before, done = done, done + share * total
                if int(done) > int(before):
                    update(min(total, int(done + 0.5)), "")

            yield advance

    def curve(self, name: str, steps: Sequence[int], values: Sequence[float]) -> None:
        """Show the course of a metric in one line: a curve of blocks, its ends and its least."""
        least = min(zip(values, steps, strict=True))
        drawn = sparkline(values, ASCII if self.console.options.ascii_only else BLOCKS)
        self.line(
            f"{name} {drawn} {values[0]:.4g} at step {steps[0]}, {values[-1]:.4g} at step "
            f"{steps[-1]}, least {least[0]:.4g} at step {least[1]}"
        )

    def _log(self, text: str) -> None:
        if not self._quiet:
            log.info(text)

    @contextmanager
    def _bar(self, what: str, total: int, done: int, count: str) -> Iterator[TaskID]:
        if self._open == 0:
            self._progress.start()
        self._open += 1
        task = self._progress.add_task(
            what, total=total, completed=done, note="", count=count, left=""
        )
        try:
            yield task
        finally:
            self._progress.remove_task(task)
            self._open -= 1
            if self._open == 0:
                self._progress.stop()


def _longest(cells: Iterable[str]) -> int:
    """Length of the longest word."""
    return max((len(word) for cell in cells for word in cell.split()), default=0)


def warn(text: str) -> None:
    """Print a warning as one line on standard error."""
    print(f"warning: {text}", file=sys.stderr, flush=True)
    log.warning(text)


def plain_warnings(quiet: bool = False) -> None:
    """Print each Python warning as one line, without its source line; or none if ``quiet``."""
    warnings.formatwarning = plain_warning
    if quiet:
        warnings.simplefilter("ignore")


BLOCKS, ASCII = "▁▂▃▄▅▆▇█", "_.:-=+*#"
"""Heights of a sparkline."""

WIDEST_CURVE = 40
"""Characters of a sparkline, at most."""


def sparkline(values: Sequence[float], heights: str = BLOCKS) -> str:
    """A curve in one line. Many values are joined to their means; what is positive is shown by its
    logarithm, so that the end of a training is not flat. A value that is not finite is a gap.
    """
    width = min(len(values), WIDEST_CURVE)
    ends = [len(values) * i // width for i in range(width + 1)]
    parts = [[v for v in values[first:last] if math.isfinite(v)] for first, last in pairwise(ends)]
    means = [sum(part) / len(part) if part else math.nan for part in parts]
    known = [mean for mean in means if math.isfinite(mean)]
    scale = math.log if known and min(known) > 0 else float
    low, high = (scale(end(known, default=1.0)) for end in (min, max))
    shown = ""
    for mean in means:
        share = (scale(mean) - low) / (high - low) if math.isfinite(mean) and high > low else 0.0
        shown += heights[round(share * (len(heights) - 1))] if math.isfinite(mean) else " "
    return shown


def clock(seconds: float) -> str:
    """A duration as ``h:mm:ss``, of two days and more as ``d days h:mm:ss``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days = f"{hours // 24} days " if hours >= 48 else ""
    return f"{days}{hours % 24 if days else hours}:{minutes:02d}:{rest:02d}"
