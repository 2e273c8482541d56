"""A compiled network computes what the network does, and one that cannot be compiled still does."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

from betasigma.networks.compiled import compile_in_place
from betasigma.networks.mlp import MLP


def networks() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    network = MLP(dim=2, width=8, depth=1)
    nn.init.normal_(next(reversed(list(network.parameters()))))
    return network, copy.deepcopy(network)


def loss_and_gradient(network: nn.Module) -> tuple[torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x, c_noise = torch.randn(6, 2, generator=generator), torch.rand(6, generator=generator)
    loss = network(x, c_noise).square().mean()
    return loss, list(torch.autograd.grad(loss, list(network.parameters())))


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_the_compiled_network_computes_the_same(cuda_graphs: bool) -> None:
    plain, compiled = networks()
    compile_in_place(compiled, cuda_graphs)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # a fallback would be no test
        torch.testing.assert_close(loss_and_gradient(compiled), loss_and_gradient(plain))
    assert compiled.state_dict().keys() == plain.state_dict().keys()


def test_where_compilation_fails_the_network_runs_as_it_is(monkeypatch) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("/nowhere/c++",))
    monkeypatch.setattr(config, "force_disable_caches", True)
    torch._dynamo.reset()
    plain, compiled = networks()
    compile_in_place(compiled)
    with pytest.warns(UserWarning, match="compile failed, going on without it"):
        loss, gradient = loss_and_gradient(compiled)
    torch.testing.assert_close((loss, gradient), loss_and_gradient(plain))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(loss_and_gradient(compiled)[0], loss)


def test_an_error_of_the_network_itself_is_not_swallowed() -> None:
    class Broken(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ torch.ones(3, 3)

    network = Broken()
    compile_in_place(network)
    with pytest.raises(Exception, match=r"mat1|size|shape") as caught:
        network(torch.ones(2, 2))
    assert "going on" not in str(caught.value)
