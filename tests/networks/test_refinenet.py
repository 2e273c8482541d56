"""RefineNet: its normalisation, its levels, and what it refuses. Equality with the authors' code is
tested where that is at hand (tests/published)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from betasigma.errors import UserError
from betasigma.networks.refinenet import InstanceNormPlus, Level, RefineNet


def small(**changes: Any) -> RefineNet:
    torch.manual_seed(0)
    return RefineNet(**{"in_channels": 2, "image_size": 8, "channels": 4, "levels": 5, **changes})


def test_instance_norm_plus_written_out() -> None:
    """Song & Ermon 2019, appendix A, with the unbiased deviation of their code."""
    torch.manual_seed(0)
    norm, x = InstanceNormPlus(6, 3), torch.randn(2, 6, 4, 5) + torch.arange(6)[:, None, None]
    torch.nn.init.normal_(norm.rows)
    level = Level(torch.tensor([2, 0]), torch.tensor([2, 1]), torch.tensor([[0.0], [0.0]]))
    found = norm(x, level)
    for i, row in enumerate((2, 0)):
        gamma, alpha, beta = norm.rows[row].reshape(3, 6)
        means = x[i].mean((1, 2))
        for k in range(6):
            plain = (x[i, k] - means[k]) / (x[i, k].var(correction=0) + 1e-5).sqrt()
            shift = (means[k] - means.mean()) / (means.var() + 1e-5).sqrt()
            expected = gamma[k] * (plain + alpha[k] * shift) + beta[k]
            torch.testing.assert_close(found[i, k], expected, rtol=1e-4, atol=1e-5)


def test_between_two_levels_their_rows_are_mixed() -> None:
    """And beyond the ends they are those of the ends."""
    torch.manual_seed(0)
    norm, x = InstanceNormPlus(4, 5), torch.randn(1, 4, 3, 3)
    net = small()

    def at(number: float) -> torch.Tensor:
        return norm(x, net._level(torch.tensor([number])))

    mixed = InstanceNormPlus(4, 0)
    mixed.rows.data = 0.75 * norm.rows[1:2] + 0.25 * norm.rows[2:3]
    torch.testing.assert_close(at(1.25), mixed(x, None))
    assert torch.equal(at(4.0), at(7.0))
    assert torch.equal(at(0.0), at(-1.0))
    assert not torch.equal(at(0.0), at(4.0))


def test_the_network_sees_the_value_range_as_minus_one_to_one() -> None:
    x, number = torch.rand(2, 2, 8, 8), torch.tensor([0.0, 4.0])
    bytes_, unit = small(value_range=(0.0, 255.0)), small(value_range=(-1.0, 1.0))
    torch.testing.assert_close(
        bytes_(255 * x, number), unit(2 * x - 1, number), rtol=1e-4, atol=1e-5
    )
    assert not torch.allclose(bytes_(x, number), unit(x, number))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"multipliers": (1, 2)}, r"network\.multipliers=\[1, 2\] must have at least 3 items"),
        ({"image_size": 7}, r"halves the image 1 time, which 7x7 images do not allow"),
        ({"pooling": "sum"}, r"network\.pooling=sum must be 'average' or 'max'"),
        ({"num_classes": 3}, r"network\.num_classes=3 must be 0"),
    ],
)
def test_bad_values_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        small(**options)
