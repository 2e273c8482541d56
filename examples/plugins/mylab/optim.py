"""An optimizer and a schedule of the learning rate."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class Lion(Optimizer):
    """Lion (Chen et al. 2023, algorithm 2): the sign of an average of the gradient."""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            first, second = group["betas"]
            for weight in (w for w in group["params"] if w.grad is not None):
                average = self.state[weight].setdefault("average", torch.zeros_like(weight))
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.sub_(group["lr"] * torch.lerp(weight.grad, average, first).sign())
                average.lerp_(weight.grad, 1 - second)
        return loss


def inverse_sqrt(optimizer: Optimizer, timescale: int = 1000) -> LambdaLR:
    """The optimizer's rate, times 1/√(1 + step/timescale)."""
    return LambdaLR(optimizer, lambda step: (1 + step / timescale) ** -0.5)
