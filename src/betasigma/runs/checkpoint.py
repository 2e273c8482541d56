"""Checkpoints: whole files of plain tensors and plain containers.

A checkpoint holds plain tensors and plain containers only and loads with ``weights_only=True``, so
a stranger's file cannot run code. At any instant the file is the old checkpoint or the new one,
whole (:mod:`betasigma.runs.files`).
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import torch

from betasigma.errors import UserError
from betasigma.runs.files import replace_file
from betasigma.runs.header import append_header, check_plain, not_plain, read_header
from betasigma.runs.portable import MEAN, VARIANCE, is_portable, read_portable

HEADER = "betasigma"
"""Key of the header in the checkpoint's dict."""

AVERAGED = "average."
"""Prefix of the averaged weights in a checkpoint's ``state_dict``."""

MOMENTS = "moments"
"""Key of the training data's moments: ``mean`` and ``variance``, float64 of one example's shape."""


def save(checkpoint: dict[str, Any], path: str | Path, keep: Path | None = None) -> None:
    """Write ``checkpoint``, with its header under ``"betasigma"``, to ``path``.

    Raises:
        OSError: if it cannot be written; a checkpoint already at ``path`` is then untouched.
        UserError: if it is not plain, so that :func:`read` would refuse it.
    """
    with replace_file(path, keep) as partial:
        try:
            torch.save(checkpoint, partial)
        except RuntimeError:  # PyTorch does not say why it cannot write
            raise _why_not(partial, _size(checkpoint)) from None
        append_header(partial, checkpoint[HEADER])
        try:
            check_plain(partial)
        except UserError:
            raise UserError(
                f"{path} would hold more than plain tensors and containers, and could not be read "
                f"again: give a callback of your own a state_dict of plain ones"
            ) from None


def _size(value: Any) -> int:
    """Bytes of the tensors in nested containers."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    inside = value.values() if isinstance(value, dict) else value
    return sum(map(_size, inside)) if isinstance(value, dict | list | tuple) else 0


def _why_not(path: Path, size: int) -> OSError:
    """Why a file of this size cannot be written."""
    try:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        return error
    return OSError(errno.EIO, os.strerror(errno.EIO))


def read(path: str | Path, key: str = "run") -> dict[str, Any]:
    """Contents of a checkpoint, with tensors on the CPU. Nothing in the file is executed.

    Raises:
        UserError: if it has more than plain tensors and containers; see also
            :func:`betasigma.runs.header.read_header`.
    """
    header = read_header(Path(path), key)
    if is_portable(Path(path)):
        tensors = read_portable(Path(path), key)
        moments = {"mean": tensors.pop(MEAN, None), "variance": tensors.pop(VARIANCE, None)}
        weights = {f"{AVERAGED}{name}": tensor for name, tensor in tensors.items()}
        known = {MOMENTS: moments} if moments["mean"] is not None else {}
        return {"state_dict": weights, **known, HEADER: header}
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception:  # a foreign pickle may raise anything
        contents = None
    if not isinstance(contents, dict) or not isinstance(contents.get("state_dict"), dict):
        raise not_plain(path, key)
    return {**contents, HEADER: header}
