"""Streams: a draw is a function of key, index and number of the call, and of nothing else."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import stats

from betasigma.randomness import BLOCK, Stream, digest, philox, seed_global


def stream(indices, *key) -> Stream:
    return Stream(*(key or ("noise", 0, 1)), indices=indices)


def draws(rng: Stream) -> list[torch.Tensor]:
    return [
        rng.normal((3, 2)),
        rng.normal((5,), torch.float64),
        rng.uniform(),
        rng.uniform((2,), torch.float32),
        rng.integers(0, 1000),
        rng.normal(()),
    ]


@pytest.mark.parametrize(
    "indices",
    [
        [0],
        [BLOCK - 1, BLOCK],
        list(range(40)),
        [39, 3, 17, 3],
        list(range(16, 32)),
        [10**12 + 5, 2],
    ],
)
def test_a_row_depends_on_its_index_alone(indices: list[int]) -> None:
    together = draws(stream(indices))
    for row, index in enumerate(indices):
        for whole, alone in zip(together, draws(stream([index])), strict=True):
            assert torch.equal(whole[row], alone[0])


def test_splits_of_a_batch_give_the_same_rows() -> None:
    whole = draws(stream(range(64)))
    for size in (1, 5, 16, 40):
        parts = [draws(stream(range(i, min(i + size, 64)))) for i in range(0, 64, size)]
        for one, pieces in zip(whole, zip(*parts, strict=True), strict=True):
            assert torch.equal(one, torch.cat(pieces))


def test_key_index_and_call_all_count() -> None:
    base = stream([0, 1]).normal((1000,))
    assert not torch.equal(base[0], base[1])
    for other in (
        stream([0, 1], "noise", 0, 2),
        stream([0, 1], "noise", 1, 1),
        stream([0, 1], "times", 0, 1),
        stream([0, 1], "noise", "0", 1),
        stream([0, 1], "noise", 0),
        stream([16, 17]),
    ):
        assert abs(np.corrcoef(base[0], other.normal((1000,))[0])[0, 1]) < 0.15
    rng = stream([0])
    assert not torch.equal(rng.normal((4,)), rng.normal((4,)))


def test_keys_do_not_run_into_each_other() -> None:
    keys = [("a", 1, 23), ("a", 12, 3), ("a1", 23), ("a", "1", 23), (1, "a", 23)]
    assert len({digest(*key) for key in keys}) == len(keys)
    assert 0 <= digest("a", size=16) < 2**128


@pytest.mark.slow
def test_it_is_the_same_in_another_process() -> None:
    code = (
        "from betasigma.randomness import Stream; "
        "print(Stream('noise', 0, 1, indices=[7]).normal((2,)).tolist())"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert told.strip() == str(stream([7]).normal((2,)).tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distributions(dtype: torch.dtype) -> None:
    rng = stream(range(500))
    normal = rng.normal((200,), dtype)
    assert normal.dtype == dtype
    assert stats.kstest(normal.flatten().numpy(), "norm").pvalue > 1e-3
    # neighbours in a block and across blocks, and successive calls, are uncorrelated
    again = rng.normal((200,), dtype)
    for left, right in ((normal[:-1], normal[1:]), (normal, again)):
        correlation = np.corrcoef(left.flatten(), right.flatten())[0, 1]
        assert abs(correlation) < 5 / left.numel() ** 0.5
    uniform = rng.uniform((200,), dtype)
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert stats.kstest(uniform.flatten().numpy(), "uniform").pvalue > 1e-3


def test_integers_cover_their_range_evenly() -> None:
    numbers = stream(range(20_000)).integers(1, 11)
    assert numbers.dtype == torch.int64
    counts = torch.bincount(numbers, minlength=11)
    assert counts[0] == 0
    assert len(counts) == 11
    assert stats.chisquare(counts[1:].numpy()).pvalue > 1e-3


def test_the_device_s_own_generator_keeps_the_same_promises(monkeypatch) -> None:
    monkeypatch.setattr(Stream, "_on_host", lambda self, device: False)
    whole = stream(range(40))
    one, two = whole.normal((3,)), whole.uniform((2,))
    for index in (0, 15, 16, 39):
        alone = stream([index])
        assert torch.equal(one[index], alone.normal((3,))[0])
        assert torch.equal(two[index], alone.uniform((2,))[0])
    assert stats.kstest(stream(range(500)).normal((100,)).flatten().numpy(), "norm").pvalue > 1e-3


def test_indices_are_a_vector_from_zero() -> None:
    assert stream(torch.arange(3)).size == 3
    for bad in ([-1], [[1, 2]]):
        with pytest.raises(ValueError, match="integers ≥ 0"):
            stream(bad)


def test_global_seed_and_philox() -> None:
    seed_global("dropout", 0, 5)
    first = torch.rand(3)
    torch.rand(7)
    seed_global("dropout", 0, 5)
    assert torch.equal(first, torch.rand(3))
    seed_global("dropout", 0, 6)
    assert not torch.equal(first, torch.rand(3))
    assert philox("order", 1).random() == philox("order", 1).random()
    assert philox("order", 1).random() != philox("order", 1, counter=1).random()
