"""A Lightning logger."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger


class JsonLines(Logger):
    """Metrics as lines of JSON.

    Args:
        save_dir: given by betasigma: the run directory.
        file: in it.
    """

    def __init__(self, save_dir: str, file: str = "metrics.jsonl") -> None:
        super().__init__()
        self.path = Path(save_dir) / file

    @property
    def name(self) -> str:
        return "json_lines"

    @property
    def version(self) -> str:
        return ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with self.path.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"step": step, **metrics}) + "\n")

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The run directory has config.yaml."""
