"""Ground truth in a model's place."""

from __future__ import annotations

from typing import Any

from betasigma import oracles
from betasigma.modules.diffusion import MeasuredModule
from betasigma.randomness import Stream


class Oracle(MeasuredModule):
    """An oracle as the Trainer knows it: it is validated, sampled and kept, and never trained.

    Args:
        denoiser: the oracle. Its data or parameters are not weights: a checkpoint has none.
    """

    family = "oracle"

    def __init__(self, denoiser: oracles.ExactDenoiser) -> None:
        super().__init__()
        self.average = denoiser

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Denoising error, with the same noise as a trained model's."""
        rng = Stream("validation", indices=batch["index"], device=self.device)
        self.log_denoising_error(batch, rng)
