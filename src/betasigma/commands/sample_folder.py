"""A folder of samples: a PNG each, named by seed and index, begun once and filled up later."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from betasigma.cpus import usable_cpus
from betasigma.errors import UserError
from betasigma.pictures import image_of, save
from betasigma.runs.directory import DRAWN
from betasigma.runs.files import write_json

FREE = ("seeds", "run")
"""What may differ when a folder is filled up: a name says its seed, and a run may have moved."""


class SampleFolder:
    """The folder.

    Args:
        root: its path; made where it is not there.
        told: what its samples depend on.
        classes: names of the classes, each of which gets a sub-folder; ``None`` for none.

    Raises:
        UserError: if it holds other files, or samples that depend on something else.
    """

    def __init__(
        self, root: Path, told: Mapping[str, Any], classes: Sequence[str] | None = None
    ) -> None:
        self.root = root
        told = {**told, "subfolders": classes is not None}
        self._folders = None if classes is None else _folder_names(classes)
        description = root / DRAWN
        if description.is_file():
            _compare(root, _known(description), told)
        elif root.is_dir() and any(root.iterdir()):
            raise UserError(f"out={root} is not empty and holds no samples: give another folder")
        else:
            write_json(description, {key: told[key] for key in told if key not in FREE})

    def path(self, seed: int, index: int, label: int | None) -> Path:
        """Where a sample is, or will be."""
        folder = self.root
        if self._folders is not None and label is not None:
            folder /= self._folders[label]
        return folder / f"seed{seed}_{index:06d}.png"

    def write(self, paths: Sequence[Path], images: Tensor) -> None:
        """Write images ``(n, C, H, W)``, each whole or not at all."""
        with ThreadPoolExecutor(usable_cpus()) as pool:
            list(pool.map(save, map(image_of, images), paths))


def _known(description: Path) -> dict[str, Any]:
    try:
        known = json.loads(description.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"out: {description} cannot be read ({error})") from None
    return known if isinstance(known, dict) else {}


def _compare(root: Path, known: Mapping[str, Any], told: Mapping[str, Any]) -> None:
    for key, value in told.items():
        if key not in FREE and known.get(key) != value:
            raise UserError(
                f"out={root} holds samples of {key}={known.get(key)}, and these would be of "
                f"{key}={value}: give another folder"
            )


def _folder_names(classes: Sequence[str]) -> list[str]:
    """A folder for each class: its name, where that can be one, behind its number."""
    width = len(str(len(classes) - 1))
    names = [re.sub(r"[^\w.-]+", "_", name).strip("._") for name in classes]
    return [
        f"{i:0{width}d}" if name in ("", str(i)) else f"{i:0{width}d}_{name}"
        for i, name in enumerate(names)
    ]
