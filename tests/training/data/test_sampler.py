from __future__ import annotations

import numpy as np
import pytest

from training.data.sampler import order, share


def test_order_has_every_sample_once_and_differs_by_epoch_and_seed():
    first, second = order(50, 1, 0), order(50, 1, 1)

    assert sorted(first) == sorted(second) == list(range(50))
    assert first.dtype == np.int64
    assert first.tolist() != second.tolist()
    assert first.tolist() != order(50, 2, 0).tolist()


def test_order_is_a_pure_function_and_never_changes_between_releases():
    # A run may be resumed with another release, which must continue in the same order.
    assert order(8, 3, 2).tolist() == order(8, 3, 2).tolist() == [1, 4, 3, 6, 7, 0, 5, 2]


@pytest.mark.parametrize("epoch", range(3))
def test_balanced_order_draws_every_class_and_every_sample_of_it_equally_often(epoch):
    indexes = np.array([0] * 70 + [1] * 9 + [3] * 4)  # class 2 has no samples

    drawn = order(83, 0, epoch, indexes=indexes, balanced=True)

    assert len(drawn) == 83
    counts = np.bincount(indexes[drawn], minlength=4)
    assert counts[2] == 0
    assert sorted(counts[[0, 1, 3]]) == [27, 28, 28]
    for index in (0, 1, 3):
        times = np.bincount(drawn, minlength=83)[indexes == index]
        assert np.ptp(times) <= 1


def test_balanced_order_covers_a_frequent_class_over_several_epochs():
    indexes = np.array([0] * 40 + [1] * 10)

    seen = {
        int(i) for epoch in range(12) for i in order(50, 0, epoch, indexes=indexes, balanced=True)
    }

    assert seen == set(range(50))


def test_balanced_order_without_classes_is_an_error():
    with pytest.raises(ValueError, match="needs the class indexes"):
        order(5, 0, 0, balanced=True)


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("size", [1, 2, 7, 8, 33])
def test_shares_of_all_processes_cover_the_batch_and_are_nearly_equal(size, world):
    shares = [share(size, rank, world) for rank in range(world)]

    assert sorted(np.concatenate(shares).tolist()) == list(range(size))
    assert max(map(len, shares)) - min(map(len, shares)) <= 2
    assert all(len(part) for part in shares) or size < world


@pytest.mark.parametrize(("size", "world"), [(8, 2), (9, 2), (32, 3)])
def test_share_is_symmetric_about_the_middle_of_the_batch(size, world):
    # `mix` pairs the first picture with the last, and so on, so both belong in one process.
    for rank in range(world):
        part = share(size, rank, world)

        assert (size - 1 - part[::-1]).tolist() == part.tolist()
