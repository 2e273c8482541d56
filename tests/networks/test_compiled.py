"""A compiled network computes what the network does, and one that cannot be compiled still does."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from unittest.mock import patch

import pytest
import torch
from torch import nn

from betasigma.commands.train import quiet_libraries
from betasigma.networks.compiled import compile_in_place
from betasigma.networks.mlp import MLP


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


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


@pytest.mark.slow
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_the_compiled_network_computes_the_same(cuda_graphs: bool) -> None:
    plain, compiled = networks()
    compile_in_place(compiled, cuda_graphs)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # a fallback would be no test
        torch.testing.assert_close(loss_and_gradient(compiled), loss_and_gradient(plain))
    assert compiled.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.slow
def test_a_copy_of_a_compiled_network_has_its_own_weights() -> None:
    plain, compiled = networks()
    compile_in_place(compiled)
    other = copy.deepcopy(compiled)
    with torch.no_grad():
        for parameter in compiled.parameters():
            parameter.zero_()
    torch.testing.assert_close(loss_and_gradient(other), loss_and_gradient(plain))


@pytest.mark.slow
def test_where_compilation_fails_the_network_runs_as_it_is_and_says_so() -> None:
    from torch._inductor import config

    plain, compiled = networks()
    compile_in_place(compiled)
    nowhere = config.patch({"cpp.cxx": ("/nowhere/c++",), "force_disable_caches": True})
    with warnings.catch_warnings(record=True) as said, nowhere:
        quiet_libraries()  # as in a run, whose filters must let it through
        loss, gradient = loss_and_gradient(compiled)
    told = [str(warning.message) for warning in said]
    failed = [text for text in told if "torch.compile failed, going on without it" in text]
    assert len(failed) == 1
    assert "No working C++ compiler found" in failed[0]
    torch.testing.assert_close((loss, gradient), loss_and_gradient(plain))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(loss_and_gradient(compiled)[0], loss)


def test_why_a_compiler_failed_is_said_whatever_kind_of_error_it_raised() -> None:
    def refuse(*_: object) -> None:
        raise AttributeError("no such kernel")

    network, _ = networks()
    network.compile(backend=refuse)
    with patch.object(network, "compile"):
        compile_in_place(network)
    with pytest.warns(UserWarning, match="going on without it: AttributeError: no such kernel$"):
        loss_and_gradient(network)


def test_an_error_of_the_call_itself_is_raised_and_gives_nothing_up() -> None:
    class Product(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ torch.ones(3, 3)

    network = Product()
    compile_in_place(network)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            network(torch.ones(2, 2))
    assert network._compiled_call_impl is not None
