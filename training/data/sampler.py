"""Which samples an epoch shows when, and which process computes which of them.

Both are pure functions: a resumed run goes on where it stopped, and the union of what the processes
see is the same whatever their number.

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
    """Returns the order in which an epoch shows the samples, a pure function of its arguments.

    Args:
        n: N.
        seed: the run's.
        epoch: 0 upwards.
        indexes: int64, shape (N,), classes; needed where `balanced`.
        balanced: each class that has samples is drawn equally often, to within one: of a frequent
            class another part in each epoch, of a rare one every sample equally often, to within one.

    Returns:
        int64, shape (N,): positions in the samples; each exactly once where not `balanced`.
    """
    generator = np.random.default_rng(seed_of("order", seed, epoch))
    if not balanced:
        return generator.permutation(n)
    if indexes is None:
        raise ValueError("balanced drawing needs the classes")
    present = np.unique(indexes)
    # The classes that are drawn once more than the others change from epoch to epoch.
    quotas = np.full(len(present), n // len(present))
    quotas[generator.permutation(len(present))[: n % len(present)]] += 1
    drawn = [
        _draw(np.flatnonzero(indexes == index), quota, generator)
        for index, quota in zip(present, quotas, strict=True)
    ]
    return generator.permutation(np.concatenate(drawn))


def share(size: int, rank: int, world: int) -> NDArray[np.int64]:
    """Returns which positions of a global batch a process computes.

    A process gets positions in pairs, i together with size - 1 - i. Mixing blends a batch with its
    mirror image, so each process can mix its own part and the union is what one process would mix.

    Args:
        size: of the global batch.
        rank: 0 to world - 1.
        world: number of processes.

    Returns:
        int64, ascending; the parts of all ranks are 0 to size - 1 exactly once.
    """
    pairs = size // 2
    if pairs < world:  # too few for pairs: better one picture each than none for some
        return np.arange(size * rank // world, size * (rank + 1) // world)
    front = np.arange(pairs * rank // world, pairs * (rank + 1) // world)
    middle = np.arange(pairs, pairs + size % 2) if rank == 0 else front[:0]
    return np.concatenate([front, middle, size - 1 - front[::-1]])


def _draw(
    numbers: NDArray[np.int64], quota: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Draws from one class: every sample quota // n times and a random part of them once more."""
    whole, rest = divmod(quota, len(numbers))
    return np.concatenate([np.tile(numbers, whole), generator.permutation(numbers)[:rest]])
