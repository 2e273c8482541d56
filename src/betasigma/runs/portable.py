"""A model without its training: averaged weights as safetensors, and a header in YAML.

Neither file can hold code. The YAML has what a checkpoint's header has, may not refer to itself
(aliases could make a small file large), and nothing in it is resolved.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from betasigma.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

PORTABLE_WEIGHTS = "model.safetensors"
PORTABLE_HEADER = "model.yaml"

MEAN, VARIANCE = "moments.mean", "moments.variance"
"""Tensors that are no weights: moments of the training data."""


def is_portable(path: Path) -> bool:
    """Whether a file is the weights of a portable model."""
    return path.suffix == ".safetensors" and path.with_name(PORTABLE_HEADER).is_file()


def read_portable(path: Path, key: str) -> dict[str, Tensor]:
    """Tensors of a portable model, on the CPU.

    Raises:
        UserError: where the file is damaged or cut short.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{key}={path} is not a whole safetensors file: {error}") from None


def write_portable(folder: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write both files."""
    from safetensors.torch import save_file

    save_file(
        {name: t.detach().contiguous() for name, t in tensors.items()}, folder / PORTABLE_WEIGHTS
    )
    text = yaml.dump(header, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True)
    (folder / PORTABLE_HEADER).write_text(text, encoding="utf-8")


class _PlainDumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True
