"""The MLP: contract, smoothness, and that it learns a score at all noise levels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from betasigma.errors import UserError
from betasigma.networks.mlp import MLP


def small(**changes: Any) -> MLP:
    torch.manual_seed(0)
    net = MLP(**{"dim": 2, "width": 16, "depth": 2, **changes})
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.3)
    return net


def inputs(batch: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 2, generator=generator), torch.linspace(-5, 5, batch)


def test_shapes_and_zero_start() -> None:
    x, c_noise = inputs()
    assert not MLP(2)(x, c_noise).any()
    assert small()(x, c_noise).shape == (4, 2)
    assert small(out_dim=5)(x, c_noise).shape == (4, 5)


def test_noise_level_counts_per_sample() -> None:
    net = small()
    x, c_noise = inputs()
    out = net(x, c_noise)
    torch.testing.assert_close(net(x[1:2], c_noise[1:2]), out[1:2])
    assert not torch.allclose(out, net(x, c_noise.flip(0)), atol=1e-3)


def test_unconditional_ignores_the_noise_level() -> None:
    net = small(conditional=False)
    x, c_noise = inputs()
    assert torch.equal(net(x, c_noise), net(x, c_noise + 3))


def test_labels_and_the_null_class() -> None:
    net = small(num_classes=3)
    x, c_noise = inputs()
    labelled = net(x, c_noise, torch.tensor([0, 1, 2, 3]))
    assert torch.equal(net(x, c_noise), net(x, c_noise, torch.full((4,), 3)))
    assert torch.equal(labelled[3], net(x, c_noise)[3])
    assert not torch.allclose(labelled[:3], net(x, c_noise)[:3], atol=1e-3)
    with pytest.raises(UserError, match=r"network\.num_classes=0"):
        small()(x, c_noise, torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize("embedding", ["positional", "fourier"])
def test_is_twice_differentiable(embedding: str) -> None:
    net = small(embedding=embedding).double()
    x, c_noise = (t.double() for t in inputs())
    x.requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: net(x, c_noise), (x,))


def test_trace_of_the_jacobian_can_be_trained_through() -> None:
    net = small()
    x, c_noise = inputs()

    def trace(x: Tensor, c: Tensor) -> Tensor:
        jacobian = torch.func.jacrev(lambda x: net(x[None], c[None])[0])(x)
        return jacobian.diagonal().sum()

    torch.func.vmap(trace)(x, c_noise).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)
    assert net.enter.weight.grad.abs().max() > 0


def test_learns_the_score_of_a_mixture_at_all_noise_levels() -> None:
    """Denoising score matching on two Gaussians, against E[eps | x] = −σ·score in closed form."""
    torch.manual_seed(0)
    centres, spread = torch.tensor([[-1.5, 0.0], [1.5, 1.0]]), 0.3
    net = MLP(2, width=64, depth=2)

    def draw(sigma: Tensor) -> tuple[Tensor, Tensor]:
        x0 = centres[torch.randint(2, (len(sigma),))] + spread * torch.randn(len(sigma), 2)
        eps = torch.randn(len(sigma), 2)
        return x0 + sigma[:, None] * eps, eps

    def predicted(x: Tensor, sigma: Tensor) -> Tensor:
        return net(x / (2 + sigma.square())[:, None].sqrt(), sigma.log())

    def expected(x: Tensor, sigma: Tensor) -> Tensor:
        variance = (spread**2 + sigma**2)[:, None]
        offset = x[:, None] - centres
        weight = (-offset.square().sum(-1) / (2 * variance)).softmax(1)
        return sigma[:, None] * (weight[..., None] * offset).sum(1) / variance

    steps = 400
    optimizer = torch.optim.Adam(net.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        sigma = torch.empty(256).uniform_(-3, 1.2).exp()
        x, eps = draw(sigma)
        loss = (predicted(x, sigma) - eps).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

    for level in (0.05, 0.2, 0.5, 1.0, 3.0):
        sigma = torch.full((4000,), level)
        x, _ = draw(sigma)
        best = expected(x, sigma)
        with torch.no_grad():
            error = (predicted(x, sigma) - best).square().mean()
        assert error <= 0.005 + 0.1 * best.square().mean()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 0}, r"network\.dim=0 .*at least 1"),
        ({"out_dim": 0}, r"network\.out_dim=0 .*at least 1"),
        ({"depth": 0}, r"network\.depth=0 .*at least 1"),
        ({"width": 7}, r"network\.width=7 must be a multiple of 2"),
        ({"num_classes": -1}, r"network\.num_classes=-1 .*at least 0"),
        ({"embedding": "none"}, r"network\.embedding=none must be 'positional', 'fourier'"),
    ],
)
def test_bad_input_is_one_clear_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small(**changes)
