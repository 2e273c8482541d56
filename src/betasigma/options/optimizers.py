"""Options of optimizers."""

from __future__ import annotations

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from betasigma.options.base import ComponentOptions, NonNegative, Positive, Probability, option


class OptimizerOptions(ComponentOptions):
    group: ClassVar[str] = "optimizer"

    lr: Positive = option(1e-3, "learning rate, after the warm-up")


class AdamOptions(OptimizerOptions):
    targets = ("torch.optim.Adam", "torch.optim.AdamW", "torch.optim.NAdam", "torch.optim.RAdam")

    betas: Annotated[list[Probability], Field(min_length=2, max_length=2)] = option(
        [0.9, 0.999], "decay of the averages of the gradient and of its square"
    )
    eps: NonNegative = option(1e-8, "added to the root of the second average")
    weight_decay: NonNegative = option(0.0, "rate of weight decay")


class SGDOptions(OptimizerOptions):
    targets = ("torch.optim.SGD",)

    momentum: Probability = option(0.0, "of the gradient's average; 0: none")
    nesterov: bool = option(False, "look ahead along the momentum")
    weight_decay: NonNegative = option(0.0, "rate of weight decay")

    @model_validator(mode="after")
    def _momentum(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("optimizer.nesterov=true needs an optimizer.momentum above 0")
        return self
