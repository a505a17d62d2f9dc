from __future__ import annotations

import numpy as np
import torch

from training.system.randomness import numpy_seeded, seed_of, torch_seeded


def test_seed_of_is_stable_and_differs_by_purpose_and_numbers():
    assert seed_of("order", 1, 2) == 8544020953681925870

    seeds = {
        seed_of(purpose, *numbers)
        for purpose in ("order", "augment")
        for numbers in ((), (0,), (0, 0), (1,), (1, 0), (0, 1), (10,), (1, 1), (11,))
    }
    assert len(seeds) == 18
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_torch_seeded_is_reproducible_and_restores_the_global_state():
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)

    with torch_seeded(7):
        first = torch.rand(3)
    with torch_seeded(7):
        second = torch.rand(3)

    assert torch.equal(first, second)
    assert torch.equal(torch.rand(2), expected)


def test_numpy_seeded_is_reproducible_and_restores_the_global_state():
    before = np.random.get_state()[1].copy()  # type: ignore[index]

    with numpy_seeded(2**40 + 7):
        first = np.random.rand(3)
    with numpy_seeded(2**40 + 7):
        second = np.random.rand(3)

    assert (first == second).all()
    assert (np.random.get_state()[1] == before).all()  # type: ignore[index]
