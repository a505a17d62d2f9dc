"""Compares a version with the one that it replaces, on the same pictures, before it is published.

Without the user's permission, a version is refused that is worse than the published one beyond the bounds
of the measurement, or that lacks one of its labels.

Shapes: N pictures, C classes.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

import numpy as np
from numpy.typing import NDArray

from contract.comparison import (
    AnswerComparison,
    LabelChanges,
    align,
    compare,
    compare_labels,
    given,
)
from contract.errors import ContractError
from contract.manifest import Activation, Comparison, Label
from contract.preprocessing import read_input
from contract.versions import Version, find_versions, read_version
from training.data.pictures import Picture, ReadInput
from training.errors import LabelsChanged, VersionUnproven, VersionWorse
from training.evaluation.scorer import Scorer
from training.export.draft import Draft
from training.export.gate import held_out_pictures
from training.release.publish import Destination

log = logging.getLogger(__name__)

_MAX_NAMED: Final = 5  # labels or pictures in a line


@dataclass(frozen=True, slots=True, eq=False)
class AnsweredPictures:
    """The test pictures, and the final graph's answers to them."""

    pictures: Iterable[Picture]  # the same on every pass
    answers: NDArray[np.float32]  # (N, C)
    indexes: NDArray[np.int64] | None = None  # (N,), the classes; None if unknown
    prepare: ReadInput = read_input


def find_replaced(to: Destination) -> Version | None:
    """Returns the newest readable version up to the new one's number, or None if there is none.

    The service falls back to an older version in the same way, so a damaged one only causes a warning.
    """
    numbers = find_versions(to.models_dir).get(to.name, [])
    for number in reversed([one for one in numbers if one <= to.version]):
        try:
            return read_version(to.models_dir, to.name, number)
        except ContractError as error:
            log.warning("the new version is not compared with a damaged one: %s", error)
    return None


def check_labels(labels: Sequence[Label], to: Destination) -> None:
    """Raises LabelsChanged if the version to be replaced has a label that is not among these.

    Needs no network, so `fit` calls it before it trains.
    """
    before = find_replaced(to)
    if before is not None:
        changes = compare_labels(before.manifest.labels, labels)
        _gate_labels(_to_manifest(before.manifest.version, changes, None), to)


def compare_with_replaced(draft: Draft, to: Destination, tested: AnsweredPictures | None) -> Draft:
    """Returns the draft with its `comparison`, if it may replace the version before it.

    Args:
        draft: with the final graph.
        to: where it is published, and what the user allows.
        tested: the test pictures. None compares the labels, and the answers to bundled pictures.

    Raises:
        VersionWorse: top-1 is lower, and the interval of the difference does not reach 0.
        LabelsChanged: a label is gone or renamed.
    """
    before = find_replaced(to)
    if before is None:
        return draft

    if tested is None:
        pictures = held_out_pictures()
        tested = AnsweredPictures(pictures, Scorer(draft.model, draft).probabilities(pictures))
    try:
        answers = _answers(before, tested)
    except VersionUnproven as error:
        log.warning("the new version is not compared with the one before: %s", error)
        return draft

    changes = compare_labels(before.manifest.labels, draft.labels)
    if tested.indexes is not None:
        known = _renamed(answers, tested.indexes, changes)
        changes = compare_labels(before.manifest.labels, draft.labels, {**changes.places, **known})
    rows = _rows_of_shared_classes(tested, changes)
    both = {before.manifest.activation, draft.activation}
    activation: Activation = "sigmoid" if both == {"sigmoid"} else "softmax"
    found = _compare(answers, tested, changes, rows, activation) if len(rows) else None

    comparison = _to_manifest(before.manifest.version, changes, found)
    log.info("%s", comparison_text(comparison, draft.name))
    if found is not None and found.changed:
        changed = {int(rows[row]) for row in found.changed}
        answered = (answers, before.manifest.labels), (tested.answers, draft.labels)
        _log_changed(changed, tested.pictures, *answered, activation)
    _gate_labels(comparison, to)
    _gate_top1(comparison, to)
    return replace(draft, comparison=comparison)


def _answers(before: Version, tested: AnsweredPictures) -> NDArray[np.float32]:
    manifest = before.manifest
    try:
        scorer = Scorer(before.graph, manifest, prepare=tested.prepare)
        return scorer.probabilities(tested.pictures)
    except Exception as error:  # onnxruntime raises whatever it likes
        raise VersionUnproven(
            f"{manifest.name}/{manifest.version} does not run: {error}"
        ) from error


def _renamed(
    answers: NDArray[np.float32], indexes: NDArray[np.int64], changes: LabelChanges
) -> dict[int, int]:
    # A new class is an old one under another name if the old version answers most of its pictures with
    # a class that is gone. Two such classes were split, not renamed.
    shared_before = set(changes.places.values())
    found: dict[int, int] = {}
    for index in set(indexes.tolist()) - set(changes.places):
        firsts = Counter(answers[indexes == index].argmax(axis=1).tolist())
        (old, count), *_ = firsts.most_common(1)
        if old not in shared_before and 2 * count > firsts.total():
            found[index] = old

    taken = Counter(found.values())
    return {index: old for index, old in found.items() if taken[old] == 1}


def _rows_of_shared_classes(tested: AnsweredPictures, changes: LabelChanges) -> NDArray[np.int64]:
    # The earlier version cannot know a class that it lacks.
    if tested.indexes is None:
        return np.arange(len(tested.answers))
    return np.flatnonzero(np.isin(tested.indexes, list(changes.places)))


def _compare(
    answers: NDArray[np.float32],
    tested: AnsweredPictures,
    changes: LabelChanges,
    rows: NDArray[np.int64],
    activation: Activation,
) -> AnswerComparison:
    indexes = None if tested.indexes is None else tested.indexes[rows]
    before, after, _ = align(answers[rows], tested.answers[rows], changes.places)
    return compare(before, after, indexes, activation)


def _to_manifest(version: int, changes: LabelChanges, found: AnswerComparison | None) -> Comparison:
    labels = {
        "labels_added": changes.added,
        "labels_removed": changes.removed,
        "labels_renamed": dict(changes.renamed),
    }
    if found is None:
        return Comparison(version=version, n_images=0, changed_answers=0, **labels)
    if found.drop is None:
        return Comparison(
            version=version, n_images=found.n, changed_answers=len(found.changed), **labels
        )
    return Comparison(
        version=version,
        n_images=found.n,
        top1_before_percent=_rounded(found.top1_before_percent),
        top1_after_percent=_rounded(found.top1_after_percent),
        difference_percent=_rounded(-found.drop.value),
        difference_low_percent=_rounded(-found.drop.high),
        difference_high_percent=_rounded(-found.drop.low),
        changed_answers=len(found.changed),
        **labels,
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3) + 0.0  # not -0.0


def _log_changed(
    changed: set[int],
    pictures: Iterable[Picture],
    before: tuple[NDArray[np.float32], Sequence[Label]],
    after: tuple[NDArray[np.float32], Sequence[Label]],
    activation: Activation,
) -> None:
    lines = []
    for i, picture in islice(((i, p) for i, p in enumerate(pictures) if i in changed), _MAX_NAMED):
        old, new = (_answer(answers[i], labels, activation) for answers, labels in (before, after))
        lines.append(f"{picture.name}: {old}, now {new}")
    more = len(changed) - len(lines)
    log.info("answers that changed: %s%s", "; ".join(lines), f"; and {more} more" if more else "")


def _answer(
    probabilities: NDArray[np.float32], labels: Sequence[Label], activation: Activation
) -> str:
    if activation == "softmax":
        return repr(labels[int(probabilities.argmax())].name)
    return (
        _some([repr(labels[i].name) for i in np.flatnonzero(given(probabilities)).tolist()])
        or "no label"
    )


def comparison_text(comparison: Comparison, name: str) -> str:
    """Returns one line about the version before, for the log and the model card."""
    parts = [f"compared with {name}/{comparison.version}"]
    if comparison.n_images:
        parts[0] += f" on {comparison.n_images:,} pictures"
        parts[0] += ": " + (
            _top1_text(comparison) or "top-1 unknown, since the pictures have no labels"
        )
        parts.append(f"{comparison.changed_answers:,} answers changed")
    else:
        parts[0] += ": no test picture shows a class that both know"
    return "; ".join([*parts, labels_text(comparison) or "the labels are the same"])


def labels_text(one: Comparison) -> str:
    """Returns the labels that are gone, renamed and new, or "" if there are none."""
    groups = {
        "gone": [repr(name) for name in one.labels_removed],
        "renamed": [f"{old!r} to {new!r}" for old, new in one.labels_renamed.items()],
        "new": [repr(name) for name in one.labels_added],
    }
    return "; ".join(f"labels {kind}: {_some(names)}" for kind, names in groups.items() if names)


def _top1_text(one: Comparison) -> str | None:
    if one.top1_before_percent is None or one.difference_percent is None:
        return None
    return (
        f"top-1 {one.top1_after_percent:.2f}% instead of {one.top1_before_percent:.2f}%, a difference "
        f"of {one.difference_percent:+.2f} points ({one.difference_low_percent:+.2f} to "
        f"{one.difference_high_percent:+.2f})"
    )


def _some(names: Sequence[str]) -> str:
    more = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def _gate_labels(comparison: Comparison, to: Destination) -> None:
    lost = comparison.labels_removed or comparison.labels_renamed
    if to.allow_label_changes or not lost:
        return
    raise LabelsChanged(
        f"{to.name}/{to.version} would replace {to.name}/{comparison.version}, but clients may rely on "
        f"its labels: {labels_text(comparison)}. Pass --allow-label-changes if that is intended, or "
        "choose another --name"
    )


def _gate_top1(comparison: Comparison, to: Destination) -> None:
    highest = comparison.difference_high_percent
    if to.allow_worse or highest is None or highest >= 0:
        return
    raise VersionWorse(
        f"{to.name}/{to.version} is worse than {to.name}/{comparison.version} on {comparison.n_images:,} "
        f"pictures: {_top1_text(comparison)}. Pass --allow-worse if it is to replace it anyway"
    )
