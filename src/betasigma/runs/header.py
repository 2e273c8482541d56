"""The header of a checkpoint, read without PyTorch.

A checkpoint is the zip archive that ``torch.save`` writes, plus one small JSON record: format
number, version, step, seed and the resolved config. With the record the command line refuses a
damaged or foreign file, and finds the run to continue, in milliseconds.
"""

from __future__ import annotations

import json
import math
import pickle
import pickletools
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from betasigma.errors import UserError
from betasigma.runs.files import read_yaml
from betasigma.runs.portable import PORTABLE_HEADER, PORTABLE_WEIGHTS, is_portable

FORMAT = 1
"""Checkpoint format that this version writes. It reads this format and older ones."""

CHECKPOINTS, LAST, BEST = "checkpoints", "last.ckpt", "best.ckpt"
"""Folder of a run directory with its checkpoints, and their names."""

PREVIOUS = "previous.ckpt"
"""The checkpoint before the last one, which is read where the last one is damaged."""

RECORD = "betasigma.json"
LARGEST_RECORD = 16 * 2**20
"""Largest size of the record in bytes; a config has a few thousand."""

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
"""Endings of files of weights that others write. Where a folder has them twice, the first of these
is read.
"""

PICKLE = ".pkl"
"""Ending of pickles that carry code, which are refused with the command that converts them."""

FIELDS = {"version": str, "step": int, "seed": int, "value_range": list, "config": dict}
"""Fields of a header besides its format number."""


def checkpoint_path(run: str | Path, key: str = "run", which: str = "last") -> Path:
    """The checkpoint meant by a run directory or a checkpoint's path.

    Of a run directory whose last checkpoint cannot be read it is the one before, with a warning.
    """
    path = Path(run)
    if path.is_file():
        return path
    if (path / PORTABLE_WEIGHTS).is_file() and is_portable(path / PORTABLE_WEIGHTS):
        return path / PORTABLE_WEIGHTS
    wanted = path / CHECKPOINTS / f"{which}.ckpt"
    found = last_checkpoint(path, key) if wanted.name == LAST else wanted
    if found is not None and found.is_file():
        return found
    if not path.exists():
        raise UserError(f"{key}={run} does not exist; give a run directory or a checkpoint")
    raise UserError(
        f"{key}={run} has no {CHECKPOINTS}/{which}.ckpt; give a run directory that has one, or a "
        f"checkpoint's own path"
    )


def run_of(path: str | Path) -> Path:
    """The run directory that a path names, by itself or by a checkpoint in it."""
    path = Path(path)
    return path.parents[1] if path.parent.name == CHECKPOINTS else path


def other_than_last(path: str | Path) -> str:
    """Name of the checkpoint that a path means; ``""`` for a run directory, or its last one."""
    path = Path(path)
    return "" if path.name == LAST or path.parent.name != CHECKPOINTS else path.name


def last_checkpoint(run: Path, key: str = "run") -> Path | None:
    """The newest checkpoint of a run that can be read; ``None`` where it has none.

    Raises:
        UserError: where there are some and none can be read, of the newest one.
    """
    last, previous = run / CHECKPOINTS / LAST, run / CHECKPOINTS / PREVIOUS
    if not last.is_file():
        return previous if previous.is_file() else None
    try:
        read_header(last, key)
    except UserError as damage:
        if not is_readable(previous):
            raise
        step = read_header(previous, key)["step"]
        fault = damage.args[0]  # without what to give instead
        # a command looks more than once, and Python shows a warning of one line once
        warnings.warn(f"{fault}; the one before, of step {step}, is taken", stacklevel=1)
        return previous
    return last


def is_readable(path: Path) -> bool:
    """Whether a checkpoint is there, and whole."""
    try:
        read_header(path)
    except UserError:
        return False
    return True


def newest_step(run: Path) -> int | None:
    """Step of a run's newest checkpoint that can be read; ``None`` without one."""
    for name in (LAST, PREVIOUS):
        if is_readable(path := run / CHECKPOINTS / name):
            step: int = read_header(path)["step"]
            return step
    return None


def may_be_published(run: Path) -> bool:
    """Whether a path that is no run of ours may be a model that others published, by its name and
    its first bytes.
    """
    if run.is_dir():
        return not (run / CHECKPOINTS).is_dir() and any(
            file.suffix in WEIGHTS and file.is_file()
            for folder in (run, run / "unet")
            for file in folder.glob("*")
        )
    if run.suffix not in (*WEIGHTS, PICKLE) or not run.is_file():
        return False
    if not zipfile.is_zipfile(run):
        with run.open("rb") as file:
            return file.read(2) != b"PK"  # an archive that is cut short
    try:
        with zipfile.ZipFile(run) as archive:
            return not any(name.rpartition("/")[2] == RECORD for name in archive.namelist())
    except zipfile.BadZipFile:
        return False


def _damage(path: Path) -> tuple[str, str]:
    """What is wrong with a file that cannot be read as a checkpoint, and what to give instead. A
    checkpoint begins as zip archives do.
    """
    with path.open("rb") as file:
        if file.read(2) == b"PK":
            return "is damaged or cut short", "use another checkpoint of the run"
    return (
        "is not a checkpoint, or is damaged at its beginning",
        "give a run directory or a checkpoint",
    )


def read_header(path: Path, key: str = "run") -> dict[str, Any]:
    """Header of a checkpoint.

    Returns:
        ``{"format", "version", "step", "seed", "value_range", "config"}``, plain containers.

    Raises:
        UserError: where the file is cut short, is not a betasigma checkpoint, or is of a newer
        format.
    """
    try:
        if is_portable(path):
            header = read_yaml(path.with_name(PORTABLE_HEADER))
        else:
            state = path.stat()
            record = _checked_record(path, (state.st_mtime_ns, state.st_size, state.st_ino))
            header = json.loads(record) if record is not None else None
    except RecursionError:
        raise UserError(f"{key}={path} has a header that is nested too deep") from None
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, NotImplementedError):
        fault, advice = _damage(path)
        raise UserError(f"{key}={path} {fault}", advice) from None
    except OSError as error:
        raise UserError(f"{key}={path} cannot be read: {error.strerror}") from None
    if not isinstance(header, dict) or not isinstance(header.get("format"), int):
        raise UserError(f"{key}={path} is not a checkpoint of betasigma")
    if not _is_harmless(header):
        raise UserError(
            f"{key}={path} has a header that is nested too deep or holds control characters, which "
            f"this package never writes"
        )
    if header["format"] > FORMAT:
        raise UserError(
            f"{key}={path} has checkpoint format {header['format']}, written by betasigma "
            f"{header.get('version', '?')}, and this version reads formats up to {FORMAT}",
            "upgrade",
        )
    fits = all(isinstance(header.get(name), kind) for name, kind in FIELDS.items())
    if not (fits and _is_range(header["value_range"])):
        raise UserError(f"{key}={path} has a header that is not a betasigma checkpoint's")
    return header


DEEPEST = 32
"""Deepest nesting of a header; a config's is about six."""


def _is_harmless(value: Any, depth: int = 0) -> bool:
    """Whether plain containers are shallow and their text can be shown on a terminal."""
    if depth > DEEPEST:
        return False
    if isinstance(value, dict):
        return all(_is_harmless(part, depth + 1) for pair in value.items() for part in pair)
    if isinstance(value, list):
        return all(_is_harmless(part, depth + 1) for part in value)
    return not isinstance(value, str) or not CONTROL.search(value)


CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that move a terminal's cursor or change its colours; tab and line feed are none."""


def _is_range(value: list[Any]) -> bool:
    """Whether a value range has a least and a greatest number."""
    numbers = [v for v in value if isinstance(v, int | float) and math.isfinite(v)]
    return len(value) == len(numbers) == 2 and numbers[0] < numbers[1]


@lru_cache(maxsize=16)
def _checked_record(path: Path, state: tuple[int, ...]) -> bytes | None:
    """The JSON record of an archive, after every byte of the archive is compared with its checksum.

    That takes as long as reading the file, so it is done once for each state of the file.

    Returns:
        ``None`` if this package has not written the archive: it has no record, the record is too
        large, or an entry is compressed. ``torch.save`` compresses nothing, and a compressed entry
        could take more memory than the file's size.

    Raises:
        zipfile.BadZipFile: where it is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        records = [entry for entry in entries if entry.filename.rpartition("/")[2] == RECORD]
        compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if not records or records[0].file_size > LARGEST_RECORD or compressed:
            return None
        if archive.testzip() is not None:
            raise zipfile.BadZipFile
        return archive.read(records[0])


PLAIN = ("torch", "collections", "_codecs")
"""Modules that ``torch.save`` names in a file of plain tensors and containers."""


def check_plain(path: Path, key: str = "run") -> None:
    """Refuse a checkpoint that names foreign code, without executing or importing anything.

    ``weights_only=True`` refuses it too when the checkpoint is read. This check comes earlier,
    before anything is started for a stranger's file.
    """
    if is_portable(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [n for n in archive.namelist() if n.rpartition("/")[2] == "data.pkl"]
            named = [name for n in pickles for name in _named(archive.read(n))]
    except (ValueError, pickle.UnpicklingError):  # no pickle at all
        named = [""]
    if any(name.split(" ")[0].split(".")[0] not in PLAIN for name in named):
        raise not_plain(path, key)


def not_plain(path: str | Path, key: str) -> UserError:
    """What to raise where a checkpoint holds more than data."""
    return UserError(
        f"{key}={path} holds something other than plain tensors under its header; nothing in it "
        f"was executed"
    )


def _named(content: bytes) -> Iterator[str]:
    """Every ``module name`` that a pickle of protocol 2 or 3 would import; ``""`` for an opcode of
    another protocol, which ``torch.save`` does not write.
    """
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name == "GLOBAL":
            yield str(argument)
        elif opcode.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
            yield ""


def append_header(path: Path, header: dict[str, Any]) -> None:
    """Add the record to an archive that ``torch.save`` has just written."""
    with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive:
        folder = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{folder}/{RECORD}", json.dumps(header))
