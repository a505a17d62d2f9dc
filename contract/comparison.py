"""Compares two graphs by their answers to the same pictures, and two versions by their labels.

Every number comes with the bounds of its 95% confidence interval, because on a few dozen pictures the
number alone says little.

Shapes: N pictures, C classes. Probabilities are float, (N, C), with rows that sum to 1.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from contract.manifest import Activation, Label, Measured

Z95: Final = 1.959963984540054
"""97.5% quantile of the normal distribution; bounds at +-Z95 hold 95%."""

UNKNOWN: Final = -1
"""The class index of a picture without a label."""

FLOOR: Final = float(np.finfo(np.float32).tiny)
"""The lower bound of a probability before its logarithm, the smallest normal float32.

A graph cannot return anything between it and 0, and no logarithm is below -87.3.
"""

THRESHOLD: Final = 0.5
"""With sigmoid, a label with this probability counts as given."""

OUTCOMES: Final = {"softmax": "first class", "sigmoid": f"labels above {THRESHOLD:g}"}
"""What two answers must have in common to agree, in words."""

_BOOTSTRAP_DRAWS: Final = 1000
_SYNSET: Final = re.compile(r"n[0-9]{8}")


@dataclass(frozen=True, slots=True)
class AnswerComparison:
    """How the answers of one graph differ from those of another.

    With sigmoid, the labels that reach `THRESHOLD` stand for the first class. Either is the most probable
    outcome.

    Attributes:
        n: pictures.
        changed: positions of the pictures with another first class, ascending.
        agreement: percentage of pictures with the same first class, 0 to 100.
        kl: mean Kullback-Leibler divergence from the probabilities before to those after, in nats.
        max_difference: largest difference of a probability, 0 to 1.
        n_labelled: pictures whose class is known; the values below are None if there are none.
        top1_before_percent: of the labelled pictures, 0 to 100.
        top1_after_percent: likewise.
        drop: top-1 before minus top-1 after, in percentage points.
    """

    n: int
    changed: tuple[int, ...]
    agreement: Measured
    kl: Measured
    max_difference: float
    n_labelled: int = 0
    top1_before_percent: float | None = None
    top1_after_percent: float | None = None
    drop: Measured | None = None


def compare(
    before: NDArray[np.floating],
    after: NDArray[np.floating],
    indexes: NDArray[np.int64] | None = None,
    activation: Activation = "softmax",
) -> AnswerComparison:
    """Compares two graphs' answers to the same pictures.

    Args:
        before: probabilities of the first graph, shape (N, C).
        after: probabilities of the second, for the same pictures and classes.
        indexes: int64, shape (N,): the true classes, `UNKNOWN` where there is none. None if no
            class is known.
        activation: sigmoid if each class has a probability of its own. The divergences of a picture's
            classes are then added up, which is that of all its labels together if they are independent.

    Raises:
        ValueError: there are no pictures, or the shapes differ.
    """
    if before.ndim != 2 or before.shape != after.shape or not len(before):
        raise ValueError(f"shapes {before.shape} and {after.shape} are not the same (N, C), N > 0")

    n = len(before)
    firsts = before.argmax(axis=1), after.argmax(axis=1)  # (N,) each
    changed = np.flatnonzero(firsts[0] != firsts[1])
    kls = divergences(before, after)
    if activation == "sigmoid":
        changed = np.flatnonzero((given(before) != given(after)).any(axis=1))
        kls = divergences(_both(before), _both(after)).reshape(before.shape).sum(axis=1)
    low, high = wilson_interval(n - len(changed), n)
    share = (n - len(changed)) / n
    agreement = Measured(value=100 * share, low=100 * low, high=100 * high)
    difference = np.abs(np.asarray(after, np.float64) - before).max()

    whole = AnswerComparison(
        n=n,
        changed=tuple(int(row) for row in changed),
        agreement=agreement,
        kl=_mean_with_bounds(kls),
        max_difference=float(f"{difference:.3g}"),
    )
    if indexes is None or not (known := indexes != UNKNOWN).any():
        return whole

    right = [first[known] == indexes[known] for first in firsts]
    drop = paired_difference(*right)
    return AnswerComparison(
        n=n,
        changed=whole.changed,
        agreement=agreement,
        kl=whole.kl,
        max_difference=whole.max_difference,
        n_labelled=int(known.sum()),
        top1_before_percent=100 * float(right[0].mean()),
        top1_after_percent=100 * float(right[1].mean()),
        drop=Measured(value=100 * drop.value, low=100 * drop.low, high=100 * drop.high),
    )


def given(probabilities: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Returns which labels count as given with sigmoid, bool, in the shape of the probabilities."""
    found: NDArray[np.bool_] = probabilities >= THRESHOLD
    return found


def align(
    before: NDArray[np.floating], after: NDArray[np.floating], places: Mapping[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Gives two versions' answers the same classes: all classes of both.

    The classes after come first, in their order, then those that only the version before has. The
    probability of a class that a version lacks is 0.

    Args:
        before: probabilities, shape (N, B).
        after: probabilities, shape (N, C), for the same pictures.
        places: class index after -> class index before, for each class that both have.

    Returns:
        Both answers, float32, shape (N, D), and the new index of each class before, int64, (B,).
    """
    n_before, n_after = before.shape[1], after.shape[1]
    columns = np.full(n_before, -1)
    for new, old in places.items():
        columns[old] = new
    gone = columns < 0
    columns[gone] = n_after + np.arange(gone.sum())

    whole = np.zeros((2, len(before), n_after + int(gone.sum())), dtype=np.float32)
    whole[0][:, columns] = before
    whole[1][:, :n_after] = after
    return whole[0], whole[1], columns


def divergences(before: NDArray[np.floating], after: NDArray[np.floating]) -> NDArray[np.float64]:
    """Returns each picture's Kullback-Leibler divergence in nats, float64, shape (N,), 0 or more.

    It is sum(before * log(before / after)): the information lost where `after` stands for `before`.
    No probability counts as less than `FLOOR` in a logarithm.
    """
    p = np.asarray(before, dtype=np.float64)
    logs = [np.log(np.maximum(np.asarray(x, np.float64), FLOOR)) for x in (before, after)]
    found: NDArray[np.float64] = (p * (logs[0] - logs[1])).sum(axis=1)
    # Rows sum to 1 only within float32, so equal answers may give -1e-8.
    return np.maximum(found, 0.0)


def _both(probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
    # Of having a label and of not having it, (N * C, 2).
    p = np.asarray(probabilities, np.float64).reshape(-1)
    return np.stack((p, 1 - p), axis=1)


def wilson_interval(hits: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Returns the bounds of a proportion, 0 to 1 (Wilson 1927; Brown, Cai and DasGupta 2001).

    Unlike the usual +-1.96 standard errors, the interval stays within 0 to 1 and is not empty where all
    or none of the pictures are correct.

    Args:
        hits: 0 to n.
        n: 1 or more.
        z: normal quantile; the default gives 95%.
    """
    share = hits / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # Rounding must not leave the bound of a perfect share just below 1.
    low = 0.0 if hits == 0 else centre - half
    return low, 1.0 if hits == n else centre + half


def paired_difference(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> Measured:
    """Returns the share of hits in `one` minus that in `other`, -1 to 1, for the same pictures.

    Only pictures that one of them alone gets right say something, so the interval is much narrower than
    that of two separate sets. It is Wald's with Laplace's adjustment (Bonett and Price 2012,
    doi:10.3102/1076998611411915), which Fagerland, Lydersen and Laake (2014, doi:10.1002/sim.6148)
    recommend for its coverage also in small samples. It is not empty where nothing differs.

    Args:
        one: bool, shape (N,), N > 0: the pictures that the first graph gets right.
        other: those that the second gets right.
    """
    n = len(one)
    lost, gained = int((one & ~other).sum()), int((other & ~one).sum())
    p, q = (lost + 1) / (n + 2), (gained + 1) / (n + 2)
    half = Z95 * math.sqrt(max(p + q - (p - q) ** 2, 0.0) / (n + 2))
    return Measured(
        value=(lost - gained) / n, low=max(-1.0, p - q - half), high=min(1.0, p - q + half)
    )


def _mean_with_bounds(values: NDArray[np.float64]) -> Measured:
    # Percentiles of bootstrap means (Efron 1979): divergences are skewed, a few pictures hold most.
    generator = np.random.default_rng(0)  # the same pictures give the same bounds
    n = len(values)
    means = [values[generator.integers(n, size=n)].mean() for _ in range(_BOOTSTRAP_DRAWS)]
    low, high = np.percentile(means, (2.5, 97.5))
    return Measured(value=float(values.mean()), low=float(low), high=float(high))


@dataclass(frozen=True, slots=True)
class LabelChanges:
    """How the labels of one version differ from those of another.

    A class that was renamed is in neither `removed` nor `added`. Classes that share a name are given
    with their synsets.

    Attributes:
        places: class index after -> class index before, for each class that both have.
        removed: names of the classes that are gone.
        added: names of the new classes.
        renamed: old name -> new name.
    """

    places: Mapping[int, int]
    removed: tuple[str, ...]
    added: tuple[str, ...]
    renamed: Mapping[str, str]


def compare_labels(
    before: Sequence[Label], after: Sequence[Label], known: Mapping[int, int] | None = None
) -> LabelChanges:
    """Finds out which classes two versions share.

    Classes are the same if their synsets are equal, or if their names are equal and their synsets do
    not differ.

    Args:
        before: the labels of the first version.
        after: those of the second.
        known: class index after -> class index before, for classes that are the same under another
            name.
    """
    places = dict(known or {})
    unmatched = {label.index: label for label in before if label.index not in places.values()}

    by_synset = {label.synset: label.index for label in unmatched.values() if label.synset}
    for label in after:
        if label.index not in places and label.synset in by_synset:
            places[label.index] = by_synset.pop(label.synset)
            del unmatched[places[label.index]]

    # ImageNet has two classes called "crane". A name decides only where a synset is missing.
    by_name = {label.name: label for label in unmatched.values()}
    for label in after:
        old = by_name.get(label.name)
        if label.index not in places and old and not (old.synset and label.synset):
            places[label.index] = old.index
            del unmatched[old.index], by_name[label.name]

    names = unique_names(before), unique_names(after)
    return LabelChanges(
        places=places,
        removed=tuple(names[0][index] for index in unmatched),
        added=tuple(names[1][label.index] for label in after if label.index not in places),
        renamed={
            names[0][old]: names[1][new]
            for new, old in sorted(places.items())
            if before[old].name != after[new].name
        },
    )


def unique_names(labels: Sequence[Label]) -> list[str]:
    """Returns the name of each class, with its synset where several classes share the name."""
    counts = Counter(label.name for label in labels)
    return [
        f"{label.name} ({label.synset})" if counts[label.name] > 1 else label.name
        for label in labels
    ]


def class_of_folder(folder: str, labels: Sequence[Label]) -> int | None:
    """Returns the index of the class that a folder is named after, by synset or name, or None.

    A name that several classes share matches none of them; their synsets still do.
    """
    if _SYNSET.fullmatch(folder):
        matches = [label.index for label in labels if label.synset == folder]
    else:
        name = _folded(folder)
        matches = [label.index for label in labels if _folded(label.name) == name]
    return matches[0] if len(matches) == 1 else None


def _folded(name: str) -> str:
    return name.replace("_", " ").casefold()
