"""A Lightning callback."""

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.optim import Optimizer


class WeightNorm(Callback):
    """Logs the norm of the weights as ``train/weight_norm``, before a step.

    Args:
        every: steps between two values.
    """

    def __init__(self, every: int = 50) -> None:
        self.every = every

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        step = trainer.global_step + 1
        if step % self.every == 0:
            weights = [p for p in pl_module.parameters() if p.requires_grad]
            norm = float(torch.nn.utils.get_total_norm(weights))
            for logger in trainer.loggers:
                logger.log_metrics({"train/weight_norm": norm}, step)
