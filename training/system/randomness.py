"""Random numbers as pure functions of what they are for.

Nothing in training keeps a random state between two steps: whoever needs random numbers derives a
seed from the run's seed, the epoch or step and the picture. A resumed run therefore draws the same
numbers as one that was never stopped, and so does a run with another number of processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_of(purpose: str, *numbers: int) -> int:
    """Returns a seed for one purpose.

    Args:
        purpose: keeps streams of the same numbers apart, such as "order" and "augment".
        numbers: such as the run's seed, the epoch and the picture.

    Returns:
        0 to 2**63 - 1, the same on every machine.
    """
    text = ",".join([purpose, *map(str, numbers)])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@contextmanager
def torch_seeded(seed: int) -> Iterator[None]:
    """Seeds torch's global generator of the CPU for a while and puts its state back.

    Args:
        seed: from `seed_of`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


@contextmanager
def numpy_seeded(seed: int) -> Iterator[None]:
    """Seeds numpy's global generator for a while and puts its state back.

    Args:
        seed: from `seed_of`; numpy's old generator takes its lower 32 bits.
    """
    before = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        np.random.set_state(before)
