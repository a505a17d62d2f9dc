"""Seeds derived from what the random numbers are for.

Training keeps no random state between steps. Each use derives its seed from the run's seed, the epoch
or step, and the picture. So a resumed run draws the same numbers as an uninterrupted one, and so does
a run with another number of processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_of(purpose: str, *numbers: int) -> int:
    """Returns a seed of 0 to 2**63 - 1, the same on every machine.

    Args:
        purpose: such as "order" or "augment"; different purposes get independent seeds.
        numbers: such as the run's seed, the epoch and the picture.
    """
    text = ",".join([purpose, *map(str, numbers)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@contextmanager
def torch_seeded(seed: int) -> Iterator[None]:
    """Seeds torch's global CPU generator inside the context and restores its state after."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def numpy_seeded(seed: int) -> Iterator[None]:
    """Seeds numpy's global generator inside the context and restores its state after."""
    before = np.random.get_state()
    np.random.seed(seed % 2**32)  # takes 32 bits only
    try:
        yield
    finally:
        np.random.set_state(before)
