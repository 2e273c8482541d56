"""Files by name: those below a folder, or in a zip archive, which is read where it is.

Every file is found once. Links are followed; a folder that two links lead to is entered once, so a
cycle of links ends. ``train.zip`` and its like at the top of a folder count as folders of that
name. Names are relative to the root, with forward slashes.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO
from zipfile import BadZipFile, ZipFile

from betasigma.errors import UserError

ZIP = ".zip"


@dataclass
class LeftOut:
    """What is left out, by reason: how many, and the first name of each."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, name: str, count: int = 1) -> None:
        """Count ``name``. ``reason`` reads after a number: ``hidden``, ``.txt``."""
        self.counts[reason] += count
        self.first.setdefault(reason, printable(name))

    def sentences(self) -> list[str]:
        """What the user is told: one sentence, or none where nothing is left out."""
        return [f"left out: {self}"] if self.counts else []

    def __str__(self) -> str:
        return ", ".join(
            f"{count:,} {reason} ({self.first[reason]}{', …' if count > 1 else ''})"
            for reason, count in self.counts.most_common()
        )


class Files:
    """A folder, or a zip archive."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._archives: dict[str, _Archive] = {}
        if not root.is_dir():
            self._archives[""] = _Archive(root)

    def list(self, is_split: Callable[[str], bool], left_out: LeftOut) -> Found:
        """Find the files, and count in ``left_out`` what is no file of its own.

        Args:
            is_split: whether an archive of this name, at the top of a folder, is to be entered.
        """
        if "" in self._archives:
            return Found(self._archives[""].list(left_out), {})
        found = _walk(self.root, left_out)
        names = []
        for name in found.names:
            if "/" in name or not (name.lower().endswith(ZIP) and is_split(name)):
                names.append(name)
                continue
            archive = self._archives[f"{name}/"] = _Archive(self.root / name)
            names += [f"{name}/{inner}" for inner in archive.list(left_out)]
        return Found(sorted(names), found.targets)

    def open(self, name: str, most: int) -> BinaryIO:
        """An open file.

        Args:
            most: bytes that one in an archive may have when it is unpacked.

        Raises:
            ValueError: if it has more.
            OSError, BadZipFile, …: whatever a damaged archive raises.
        """
        archive, inner = self._archive(name)
        if archive is None:
            return (self.root / name).open("rb")
        return io.BytesIO(archive.read(inner, most))

    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""
        archive, inner = self._archive(name)
        return (self.root / name).is_file() if archive is None else archive.has(inner)

    def stamp(self, name: str) -> str:
        """What changes when the file does: checksum in an archive, else size and time of change.

        Raises:
            OSError: if it is gone.
        """
        archive, inner = self._archive(name)
        if archive is not None:
            return archive.stamp(inner)
        status = os.stat(self.root / name)
        return f"{status.st_size}\0{status.st_mtime_ns}"

    def where(self, name: str) -> str:
        """The place of a file, for messages."""
        return str(self.root / name)

    def is_there(self) -> bool:
        """Whether the root can still be reached."""
        return os.access(self.root, os.R_OK)

    def _archive(self, name: str) -> tuple[_Archive | None, str]:
        for prefix, archive in self._archives.items():
            if name.startswith(prefix):
                return archive, name.removeprefix(prefix)
        return None, name


@dataclass(frozen=True)
class Found:
    """Names of files, in order.

    Attributes:
        names: of all of them.
        targets: the file that a link leads to, by the link's name, as something to compare.
    """

    names: list[str]
    targets: dict[str, str]


class _Archive:
    """A zip archive. It may be read by several threads, and by processes that were forked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._zip, self._pid = self._open(), os.getpid()

    def list(self, left_out: LeftOut) -> list[str]:
        names, shown = set(), f"{self.path.name}/"
        for info in self._zip.infolist():
            if info.is_dir():
                continue
            if info.flag_bits & 1:
                raise UserError(f"data.root={self.path} is encrypted: unpack it first")
            if any(_is_hidden(part) for part in info.filename.split("/")):
                left_out.add("hidden", shown + info.filename)
            elif info.filename in names:
                left_out.add("of a name that the archive has twice", shown + info.filename)
            else:
                names.add(info.filename)
        return sorted(names)

    def read(self, name: str, most: int) -> bytes:
        archive = self._opened()
        size = archive.getinfo(name).file_size
        if size > most:
            raise ValueError(f"it has {size:,} bytes when unpacked")
        with archive.open(name) as file:  # read() would unpack what a false size hides
            return file.read(size + 1)

    def has(self, name: str) -> bool:
        return name in self._opened().NameToInfo

    def stamp(self, name: str) -> str:
        info = self._opened().getinfo(name)
        return f"{info.file_size}\0{info.CRC}"

    def _open(self) -> ZipFile:
        try:
            return ZipFile(self.path)
        except FileNotFoundError:
            raise UserError(
                f"data.root={self.path} is not a folder, nor a file: give the path of a folder of "
                f"images, or of a zip archive"
            ) from None
        except (BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise UserError(
                f"data.root={self.path} is neither a folder nor a zip archive that can be read "
                f"({error}): give the path of one"
            ) from None

    def _opened(self) -> ZipFile:
        if self._pid != os.getpid():  # a forked process would move the parent's place in the file
            self._zip, self._pid = self._open(), os.getpid()
        return self._zip

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Path]) -> None:
        self.__init__(state["path"])  # type: ignore[misc]


def _walk(root: Path, left_out: LeftOut) -> Found:
    """Files below ``root``: folders proper first, then those that links lead to."""
    names: list[str] = []
    linked_files: dict[str, str] = {}
    entered: dict[str, str] = {}
    folders, linked_folders = deque([("", os.path.realpath(root))]), deque[tuple[str, str]]()
    while folders or linked_folders:
        prefix, real = folders.popleft() if folders else linked_folders.popleft()
        if real in entered:
            left_out.add("linking to a folder that is read already", prefix.rstrip("/"))
            continue
        entered[real] = prefix
        for entry in _entries(real):
            name = prefix + entry.name
            if _is_hidden(entry.name):
                left_out.add("hidden", name)
            elif entry.is_symlink():
                _follow(entry, name, linked_files, linked_folders, left_out)
            elif entry.is_dir():
                folders.append((f"{name}/", entry.path))
            elif entry.is_file():
                names.append(name)
            else:
                left_out.add("neither file nor folder", name)
    targets = {}
    for name, real in linked_files.items():
        folder, _, own = real.rpartition("/")
        targets[name] = entered[folder] + own if folder in entered else real
    return Found(sorted([*names, *linked_files]), targets)


def _follow(
    link: os.DirEntry[str],
    name: str,
    files: dict[str, str],
    folders: deque[tuple[str, str]],
    left_out: LeftOut,
) -> None:
    try:
        mode = link.stat().st_mode
    except FileNotFoundError:
        left_out.add("linking to a file that is missing", name)
        return
    except OSError as error:
        if error.errno == errno.ELOOP:
            left_out.add("linking in a circle", name)
            return
        raise _unreadable(link.path, error) from None
    real = os.path.realpath(link.path)
    if stat.S_ISDIR(mode):
        folders.append((f"{name}/", real))
    elif stat.S_ISREG(mode):
        files[name] = real
    else:
        left_out.add("neither file nor folder", name)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise _unreadable(folder, error) from None


def _unreadable(path: str, error: OSError) -> UserError:
    if isinstance(error, PermissionError):
        return UserError(f"data.root has {path}, which cannot be read: `chmod -R u+rX` allows it")
    return UserError(f"data.root has {path}, which cannot be read ({error.strerror})")


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def printable(text: str) -> str:
    """Return a name without what would move a terminal's cursor, or is no text at all."""
    return "".join(c if c.isprintable() else "?" for c in text)
