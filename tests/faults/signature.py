"""What the keys of a config change: numbers that everything that is built from it takes part in."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from betasigma.commands.assemble import make_data, make_objective, make_sampler
from betasigma.commands.train import make_model
from betasigma.randomness import Stream
from betasigma.samplers import labels_in_turn


def signature(content: dict[str, Any]) -> list[Tensor]:
    """Batches of the data, the loss and its gradient, predictions on and between the levels, and
    samples. Weights are drawn anew, as layers that begin at zero would hide what is before them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [part.detach().double().flatten() for part in _parts(content)]


def _parts(content: dict[str, Any]) -> list[Tensor]:
    data = make_data(content)
    data.prepare_data()
    data.setup()
    model = make_model(content, data)
    batches = iter(data.train_dataloader())
    first, second = (data.prepare_batch(next(batches)) for _ in range(2))
    found = [first["x"], second["x"], torch.tensor(len(data.val_dataloader()))]
    draws = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=draws)
    labels = first.get("label") if model.num_classes else None
    rng = Stream("signature", 0, indices=range(len(first["x"])))
    if content["model"]["family"] != "oracle":
        objective = make_objective(content, model.schedule)
        model.train()
        torch.manual_seed(0)
        loss = objective.loss(model, first["x"], labels, rng)
        gradients = torch.autograd.grad(
            loss.loss, list(model.parameters()), allow_unused=True, materialize_grads=True
        )
        found += [loss.loss, *gradients]
        model.eval()
        refuses = model.off_levels == "refuse" and model.trained_on == "levels"
        found.append(torch.tensor(refuses and model.schedule.levels > 1))
        for share in (1.0, 0.5, 0.3737):
            t = max(share, model.schedule.t_min)
            with torch.no_grad(), model.between_levels(_known_policy(model.off_levels)):
                found.append(model(first["x"], t, labels).x0)
    y = labels_in_turn(model.num_classes, 2)
    found.append(make_sampler(content["sampler"]).sample(model, 2, seed=0, y=y).x)
    return found


def _known_policy(policy: Any) -> Any:
    """``refuse`` has an effect of its own, a number beside those of the other policies."""
    return "snap" if policy == "refuse" else policy


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether two signatures are equal, to the last bit."""
    return len(one) == len(other) and all(
        a.shape == b.shape and torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
        for a, b in zip(one, other, strict=True)
    )
