"""A Lightning callback."""

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.optim import Optimizer


class GradientNorm(Callback):
    """Logs the norm of the gradient as ``train/gradient_norm``, before it is clipped.

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
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            norm = float(torch.nn.utils.get_total_norm(gradients))
            for logger in trainer.loggers:
                logger.log_metrics({"train/gradient_norm": norm}, step)
