"""Lightning's reading and writing of checkpoints: whole, plain and complete."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from betasigma.errors import UserError
from betasigma.runs.checkpoint import read, save

STATE = ("pytorch-lightning_version", "global_step", "loops", "optimizer_states", "lr_schedulers")
"""What a run needs of its checkpoint, besides weights, to go on as if it had never stopped."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, written and read by :mod:`betasigma.runs.checkpoint`."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        save(checkpoint, Path(path))

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None, weights_only: Any = None
    ) -> dict[str, Any]:
        contents = read(Path(path), "resume")
        lacking = [name for name in STATE if name not in contents]
        if lacking:
            raise UserError(
                f"resume={path} cannot be continued: it has no {', '.join(lacking)}; it can still "
                f"be sampled and evaluated if it has weights"
            )
        return contents
