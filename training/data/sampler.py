"""The order of the samples in an epoch, and the part of a batch that each process computes.

Both are pure functions. So a resumed run continues in the same order, and the global batches do not
depend on the number of processes.

Shapes: N samples.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from training.system.randomness import seed_of


def order(
    n: int,
    seed: int,
    epoch: int,
    *,
    indexes: NDArray[np.int64] | None = None,
    balanced: bool = False,
) -> NDArray[np.int64]:
    """Returns the order of the samples in an epoch: int64, shape (N,), positions in the samples.

    Unbalanced, each sample occurs exactly once. Balanced, each class that has samples is drawn
    equally often, to within one; within a class, so is each sample. A frequent class shows another
    part in each epoch.

    Args:
        n: N.
        seed: of the run.
        epoch: counts from 0.
        indexes: int64, shape (N,), classes; required if `balanced`.
        balanced: whether to draw all classes equally often.
    """
    generator = np.random.default_rng(seed_of("order", seed, epoch))
    if not balanced:
        return generator.permutation(n)
    if indexes is None:
        raise ValueError("balanced sampling needs the class indexes")

    present = np.unique(indexes)
    # Some classes are drawn once more than the others; which ones changes from epoch to epoch.
    quotas = np.full(len(present), n // len(present))
    quotas[generator.permutation(len(present))[: n % len(present)]] += 1
    drawn = [
        _draw(np.flatnonzero(indexes == index), quota, generator)
        for index, quota in zip(present, quotas, strict=True)
    ]
    return generator.permutation(np.concatenate(drawn))


def share(size: int, rank: int, world: int) -> NDArray[np.int64]:
    """Returns the positions of a global batch that a process computes: int64, ascending.

    The parts of all ranks together are 0 to size - 1, each exactly once. Positions come in pairs, i
    with size - 1 - i, because `augment.mix` blends these two: so each process can mix its own part.

    Args:
        size: of the global batch.
        rank: 0 to world - 1.
        world: number of processes.
    """
    pairs = size // 2
    if pairs < world:  # then the parts are contiguous, or some processes would have no picture
        return np.arange(size * rank // world, size * (rank + 1) // world)
    front = np.arange(pairs * rank // world, pairs * (rank + 1) // world)
    middle = np.arange(pairs, pairs + size % 2) if rank == 0 else front[:0]
    return np.concatenate([front, middle, size - 1 - front[::-1]])


def _draw(
    numbers: NDArray[np.int64], quota: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    # Every sample of the class quota // n times, and a random part of them once more.
    whole, rest = divmod(quota, len(numbers))
    return np.concatenate([np.tile(numbers, whole), generator.permutation(numbers)[:rest]])
