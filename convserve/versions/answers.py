"""The answers of two versions to the same picture files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from contract.comparison import (
    UNKNOWN,
    AnswerComparison,
    LabelChanges,
    align,
    class_of_folder,
    compare,
    given,
    unique_names,
)
from contract.errors import ImageError
from contract.manifest import Manifest, Measured
from contract.preprocessing import Tensor, read_input
from service.models.engine import Run
from service.models.repository import LoadedVersion


@dataclass(frozen=True, slots=True)
class Answer:
    """The first class of one version for one picture."""

    label: str
    index: int
    probability: float


@dataclass(frozen=True, slots=True)
class ChangedAnswer:
    """A picture with another first class.

    Attributes:
        file: the picture.
        label: its class, from the name of its folder; None if that is no class of either version.
    """

    file: str
    label: str | None
    a: Answer
    b: Answer


@dataclass(frozen=True, slots=True)
class LabelProbabilities:
    """A label with its probability in both versions, 0 in a version that lacks it."""

    label: str
    a: float
    b: float


@dataclass(frozen=True, slots=True)
class ChangedLabels:
    """A picture with other labels above 0.5, where every label has a probability of its own.

    Attributes:
        file: the picture.
        gained: labels that B gives and A does not.
        lost: labels that A gives and B does not.
    """

    file: str
    gained: tuple[LabelProbabilities, ...]
    lost: tuple[LabelProbabilities, ...]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Top-1 of both versions on the pictures of classes that both have.

    Attributes:
        difference_percent: top-1 of B minus that of A, in points, on the same pictures.
    """

    n: int
    a_percent: float
    b_percent: float
    difference_percent: Measured


@dataclass(frozen=True, slots=True)
class AnswerDifference:
    """How the answers of two versions differ. A renamed class counts as the same.

    If both are sigmoid, the labels above 0.5 are compared. If one is, only the first classes are.

    Attributes:
        n: pictures that both versions answered.
        n_same: of these, pictures with the same first class, or with the same labels.
        agreement_percent: likewise, 0 to 100.
        mean_kl: mean Kullback-Leibler divergence from A's probabilities to B's, in nats. None if the
            classes differ, or if only one version is sigmoid.
        max_probability_change: largest difference of a probability, 0 to 1. None if only one version
            is sigmoid.
        changed: the others.
        accuracy: None if no picture's folder is named after a class that both have, or if a version
            is sigmoid.
        n_other_class: labelled pictures of classes that only one version has.
    """

    n: int
    n_same: int
    agreement_percent: Measured
    mean_kl: Measured | None
    max_probability_change: float | None
    changed: tuple[ChangedAnswer, ...] | tuple[ChangedLabels, ...]
    accuracy: Accuracy | None
    n_other_class: int


@dataclass(frozen=True, slots=True, eq=False)
class AnsweredFiles:
    """Picture files with the probabilities of both versions.

    Attributes:
        files: N files that both versions answered.
        a: probabilities of the first version, float32, shape (N, C).
        b: of the second, shape (N, D).
        refused: file -> reason, for the files that could not be read or decoded.
    """

    files: tuple[Path, ...]
    a: NDArray[np.float32]
    b: NDArray[np.float32]
    refused: dict[str, str]


def answer_files(files: Iterable[Path], a: LoadedVersion, b: LoadedVersion) -> AnsweredFiles:
    """Classifies picture files with two versions, as the service does."""
    answered: list[Path] = []
    rows: tuple[list[NDArray[np.float32]], ...] = ([], [])
    refused: dict[str, str] = {}
    for file in files:
        try:
            inputs = _inputs(file.read_bytes(), a.manifest, b.manifest)
        except (ImageError, OSError) as error:
            refused[str(file)] = getattr(error, "strerror", None) or str(error)
            continue
        answered.append(file)
        for one, row, found in zip((a, b), inputs, rows, strict=True):
            found.append(one.engine.run(row[None], Run())[0])
    stacked = [
        np.stack(found) if found else np.empty((0, one.manifest.n_classes), np.float32)
        for one, found in zip((a, b), rows, strict=True)
    ]
    return AnsweredFiles(tuple(answered), stacked[0], stacked[1], refused)


def _inputs(data: bytes, a: Manifest, b: Manifest) -> tuple[Tensor, Tensor]:
    row = read_input(data, a)
    same = (a.preprocessing, a.graph.input.layout) == (b.preprocessing, b.graph.input.layout)
    return row, row if same else read_input(data, b)


def compare_answers(
    answered: AnsweredFiles, folder: Path, a: Manifest, b: Manifest, changes: LabelChanges
) -> AnswerDifference | None:
    """Compares the answers of two versions; None if there are none.

    Args:
        answered: the answers.
        folder: a picture's class is named by the first folder below this one.
        a: the first version.
        b: the second.
        changes: from `label_changes`.
    """
    if not answered.files:
        return None
    before, after, columns = align(answered.a, answered.b, changes.places)
    classes = _classes(answered.files, folder, a, b, columns)
    shared = np.isin(classes, list(changes.places))
    comparable = a.activation == b.activation
    activation = a.activation if comparable else "softmax"
    found = compare(before, after, np.where(shared, classes, UNKNOWN), activation)

    changed: tuple[ChangedAnswer, ...] | tuple[ChangedLabels, ...]
    if activation == "sigmoid":
        names = _names(columns, unique_names(a.labels), unique_names(b.labels))
        changed = tuple(
            _changed_labels(str(answered.files[row]), before[row], after[row], names)
            for row in found.changed
        )
    else:
        names = _names(columns, *([label.name for label in one.labels] for one in (a, b)))
        changed = tuple(
            ChangedAnswer(
                file=str(answered.files[row]),
                label=names.get(int(classes[row])),
                a=_first(answered.a[row], a),
                b=_first(answered.b[row], b),
            )
            for row in found.changed
        )

    same_classes = len(changes.places) == a.n_classes == b.n_classes
    return AnswerDifference(
        n=found.n,
        n_same=found.n - len(found.changed),
        agreement_percent=found.agreement,
        mean_kl=found.kl if same_classes and comparable else None,
        max_probability_change=found.max_difference if comparable else None,
        changed=changed,
        accuracy=None if "sigmoid" in (a.activation, b.activation) else _accuracy(found),
        n_other_class=int((~shared & (classes != UNKNOWN)).sum()),
    )


def _classes(
    files: Sequence[Path], folder: Path, a: Manifest, b: Manifest, columns: NDArray[np.int64]
) -> NDArray[np.int64]:
    # Class indexes as after `align`, (N,). B's names count first.
    found: dict[str, int] = {}
    classes = []
    for file in files:
        parts = file.relative_to(folder).parts if file != folder else ()
        name = parts[0] if len(parts) > 1 else ""
        if name not in found:
            in_b, in_a = class_of_folder(name, b.labels), class_of_folder(name, a.labels)
            in_both = int(columns[in_a]) if in_a is not None else UNKNOWN
            found[name] = in_both if in_b is None else in_b
        classes.append(found[name])
    return np.array(classes, dtype=np.int64)


def _names(columns: NDArray[np.int64], a: Sequence[str], b: Sequence[str]) -> dict[int, str]:
    # By class index as after `align`.
    return dict(zip(columns.tolist(), a, strict=True)) | dict(enumerate(b))


def _changed_labels(
    file: str, a: NDArray[np.float32], b: NDArray[np.float32], names: Mapping[int, str]
) -> ChangedLabels:
    gained, lost = (
        tuple(
            LabelProbabilities(names[index], round(float(a[index]), 6), round(float(b[index]), 6))
            for index in np.flatnonzero(which).tolist()
        )
        for which in (given(b) & ~given(a), given(a) & ~given(b))
    )
    return ChangedLabels(file, gained, lost)


def _first(probabilities: NDArray[np.float32], manifest: Manifest) -> Answer:
    index = int(probabilities.argmax())
    return Answer(manifest.labels[index].name, index, round(float(probabilities[index]), 6))


def _accuracy(found: AnswerComparison) -> Accuracy | None:
    drop = found.drop
    if drop is None or found.top1_before_percent is None or found.top1_after_percent is None:
        return None
    return Accuracy(
        n=found.n_labelled,
        a_percent=found.top1_before_percent,
        b_percent=found.top1_after_percent,
        # 0.0 - x is not -0.0.
        difference_percent=Measured(
            value=0.0 - drop.value, low=0.0 - drop.high, high=0.0 - drop.low
        ),
    )
