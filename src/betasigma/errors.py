"""The error for bad input, what its sentences are made of, and the end of a run that was stopped
from outside.
"""

from __future__ import annotations

import difflib
import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any


class UserError(Exception):
    """Bad input. The message is one clear sentence that names the key, the value and what would be
    accepted. Its parts are the arguments, where what is wrong is told without what to do about it.

    The commands print it without a traceback and exit with status 1.

    Attributes:
        details: what ``status.json`` of the run keeps besides the message; plain containers.
    """

    details: Mapping[str, Any] = MappingProxyType({})

    def __str__(self) -> str:
        return "; ".join(map(str, self.args))


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its kind, where it says nothing.

    That of pydantic's only counts, and the next two are the key and what is wrong with it.
    """
    lines = [line for line in map(str.strip, str(error).splitlines()) if line]
    if len(lines) > 2 and re.match(r"\d+ validation errors? for ", lines[0]):
        return f"{lines[1]}: {lines[2].partition(' [type=')[0]}"
    return lines[0] if lines else type(error).__name__


def counted(number: int, what: str) -> str:
    """``1 job``, ``2 jobs``, ``2 classes``."""
    plural = "es" if what.endswith("ss") else "s"
    return f"{number} {what}{'' if number == 1 else plural}"


def few(names: Sequence[str], most: int = 20) -> str:
    """Names in a sentence: ``most`` of them, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def did_you_mean(
    word: object, known: Iterable[str], most: int = 1, cutoff: float = 0.6, before: str = ""
) -> str:
    """A question for a word that is unknown, with ``before`` in front of each of the known words
    that are near; empty where none is.
    """
    near = difflib.get_close_matches(str(word), list(known), most, cutoff)
    return f"did you mean {' or '.join(before + name for name in near)}?" if near else ""


class Stopped(SystemExit):
    """A signal has stopped the run. The process ends with the status of one that the signal killed.

    Args:
        number: of the signal.

    Attributes:
        asked: whether SLURM was asked to start the job again.
    """

    asked = False

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number

    def __str__(self) -> str:
        return "Ctrl-C" if self.number == signal.SIGINT else signal.Signals(self.number).name


@contextmanager
def printed() -> Iterator[None]:
    """Print what is printed in this block. Where nobody reads it any more, as behind ``| head``,
    the command ends as by SIGPIPE; a pipe to something else that breaks is that one's error.
    """
    try:
        yield
        print(end="", flush=True)
    except BrokenPipeError:
        try:
            print(flush=True)  # an empty line, to ask whose pipe it was
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise Stopped(signal.SIGPIPE) from None
        raise


def plain_warning(message: Warning | str, *args: Any, **kwargs: Any) -> str:
    """A Python warning as one line, without its source line."""
    return f"warning: {message}\n"
