r"""Energy networks: a scalar f(x, c_noise) whose score needs no normalising constant.

For p(x) = e^{−f(x)}/C (2.12 of docs/equations.md) the score is −∇f(x) (2.13): C does not depend on
x. Wrapped around a network whose outputs are summed to f, this is a network like any other, with
output −∇f; use it
with ``preconditioning.prediction=score`` (the output is σ·score, f the energy in units of 1/σ) or
``raw_score``. Its vector field is a gradient, which that of an ordinary network need not be.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from betasigma.networks.mlp import MLP


class EnergyNetwork(nn.Module):
    """−∇ₓ of the summed outputs of a network.

    Args:
        network: any twice differentiable network of the common contract, ``network(x, c_noise,
            y)``.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def energy(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None) -> Tensor:
        """f(x, c_noise), shape ``(B,)``."""
        return self.network(x, c_noise, y).flatten(1).sum(1)

    def forward(self, x: Tensor, c_noise: Tensor, y: Tensor | None = None) -> Tensor:
        """−∇f, the shape of ``x``; can be differentiated again while gradients are enabled."""
        keep = torch.is_grad_enabled()
        # samplers run in inference mode, where nothing can be differentiated
        with torch.inference_mode(False), torch.enable_grad():
            point = x if keep and x.requires_grad else x.clone().requires_grad_(True)
            f = self.energy(point, c_noise.clone(), y)
            (gradient,) = torch.autograd.grad(f.sum(), point, create_graph=keep)
        return -gradient


def energy_mlp(dim: int, **options: Any) -> EnergyNetwork:
    """−∇f of an MLP with one output.

    Args:
        dim: coordinates of a point.
        options: of :class:`~betasigma.networks.mlp.MLP`.
    """
    network = MLP(dim, 1, **options)
    # an energy's constant has no gradient, and a weight without one no place in an optimizer
    network.leave.register_parameter("bias", None)
    return EnergyNetwork(network)
