from itertools import islice

import numpy as np
import pytest

from betasigma.data.order import (
    DataOrder,
    Division,
    OneBatch,
    fixed_order,
    subset,
    training_order,
)
from betasigma.errors import UserError


def taken(order, division, step, steps):
    return list(islice(training_order(order, division, step), steps * division.accumulate))


def test_every_example_once_per_epoch_across_batches_that_straddle_epochs():
    stream = taken(DataOrder(10, 0), Division(4), 0, 10)
    examples = np.concatenate([m.examples for m in stream])
    for epoch in examples.reshape(4, 10):
        assert sorted(epoch) == list(range(10))
    assert not np.array_equal(examples[:10], examples[10:20])


def test_order_is_a_function_of_the_seed():
    one, same, other = (DataOrder(100, seed).examples(0, 100) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_starting_at_a_step_equals_getting_there():
    whole = taken(DataOrder(7, 3), Division(4, accumulate=2), 0, 9)
    for step in range(9):
        rest = taken(DataOrder(7, 3), Division(4, accumulate=2), step, 9 - step)
        for a, b in zip(whole[2 * step :], rest, strict=True):
            assert a.step == b.step
            np.testing.assert_array_equal(a.index, b.index)
            np.testing.assert_array_equal(a.examples, b.examples)


@pytest.mark.parametrize(("accumulate", "world_size"), [(1, 1), (3, 1), (1, 4), (2, 3), (12, 1)])
def test_the_same_batch_however_it_is_shared(accumulate, world_size):
    """A set smaller than a batch included."""
    for size in (5, 100):
        for step in (0, 3):
            shared = {}
            for rank in range(world_size):
                division = Division(12, accumulate, world_size, rank)
                for micro_batch in taken(DataOrder(size, 0), division, step, 1):
                    assert micro_batch.step == step
                    assert len(micro_batch.index) == 12 // accumulate // world_size
                    pairs = zip(micro_batch.index, micro_batch.examples, strict=True)
                    shared |= {int(i): int(e) for i, e in pairs}
            alone = DataOrder(size, 0).examples(12 * step, 12 * step + 12)
            assert [shared[i] for i in range(12)] == alone.tolist()


def test_batches_that_cannot_be_divided():
    with pytest.raises(UserError, match=r"batch_size=64 .*multiple of 6"):
        Division(64, accumulate=3, world_size=2)
    with pytest.raises(UserError, match="batch_size=0"):
        Division(0)


@pytest.mark.parametrize(("size", "world_size"), [(1, 1), (17, 1), (17, 2), (16, 4), (3, 2)])
def test_fixed_order_covers_everything_once_and_evenly(size, world_size):
    chosen = np.arange(size)
    ranks = [fixed_order(chosen, 4, world_size, rank) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    examples = np.concatenate([b.examples for batches in zip(*ranks, strict=True) for b in batches])
    assert examples.tolist() == list(range(size))
    assert max(len(b.examples) for batches in ranks for b in batches) <= 4
    assert all(b.step == 0 and np.array_equal(b.index, b.examples) for b in ranks[0])


def test_a_subset_of_a_sorted_set_has_all_classes_in_their_shares():
    """Ten classes one after the other; the counts of 1,000 draws without replacement."""
    chosen = subset(10_000, 1000)
    assert len(np.unique(chosen)) == 1000
    assert (np.diff(chosen) > 0).all()
    counts = np.bincount(chosen // 1000, minlength=10)
    expected, deviation = 100, np.sqrt(1000 * 0.1 * 0.9 * 0.9)
    assert (np.abs(counts - expected) < 4 * deviation).all()
    assert set(subset(10_000, 100)) < set(chosen)
    assert subset(5, None).tolist() == subset(5, 9).tolist() == [0, 1, 2, 3, 4]


def test_one_batch_is_the_first_of_the_order_at_every_step():
    division = Division(12, accumulate=2, world_size=2, rank=1)
    first = taken(DataOrder(100, 3), division, 0, 1)
    for step in (0, 5):
        again = taken(OneBatch(100, 3, 12), division, step, 1)
        for a, b in zip(first, again, strict=True):
            assert b.step == step  # noise and times still differ from step to step
            np.testing.assert_array_equal(a.examples, b.examples)
            np.testing.assert_array_equal(a.index, b.index)
