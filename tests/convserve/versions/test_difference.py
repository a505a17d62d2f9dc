from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.errors import ModelError
from contract.manifest import Label, Manifest
from convserve.versions import difference as module
from convserve.versions.answers import (
    AnswerDifference,
    AnsweredFiles,
    ChangedAnswer,
    ChangedLabels,
    LabelProbabilities,
    compare_answers,
)
from convserve.versions.difference import Difference, difference
from convserve.versions.facts import label_changes
from tests import tinymodel


def compared(
    models_dir: Path, b: tuple[str, int] = ("tiny", 2), folder: Path | None = None
) -> Difference:
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if folder else []
    return difference(models_dir, (("tiny", 1), b), folder, files, 0, "cpu")


def value(found: Difference, name: str) -> tuple[object, object, bool]:
    (fact,) = [one for one in found.facts if one.name == name]
    return fact.a, fact.b, fact.same


def write_pictures(folder: Path, *names: str) -> Path:
    """Writes one picture per "folder/colour"."""
    for name in names:
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tinymodel.picture(path.stem))
    return folder


def other_labels(models_dir: Path, *names: str, **changes: Any) -> None:
    """Writes tiny/2, another graph with other names."""
    labels = [{"index": index, "name": name} for index, name in enumerate(names)]
    golden = [
        {
            **example.model_dump(),
            "top5": [{**one.model_dump(), "label": names[one.index]} for one in example.top5],
        }
        for example in tinymodel.write_version(models_dir / "scratch").golden
    ]
    tinymodel.write_version(
        models_dir, version=2, lopsided=True, labels=labels, golden=golden, **changes
    )


def test_equal_versions_have_no_difference(tmp_path):
    for number in (1, 2):
        tinymodel.write_version(tmp_path, version=number)

    found = compared(tmp_path, folder=write_pictures(tmp_path / "p", "red", "blue"))

    labels = found.labels
    assert (labels.n_shared, labels.removed, labels.added) == (3, (), ())
    assert not labels.renamed
    assert not labels.moved
    assert all(fact.same for fact in found.facts)
    assert found.answers
    assert (found.answers.n, found.answers.n_same, found.answers.changed) == (2, 2, ())
    assert found.answers.mean_kl
    assert found.answers.mean_kl.value == found.answers.max_probability_change == 0.0
    assert found.answers.accuracy is None


def test_labels_added_removed_and_moved_are_named(tmp_path):
    tinymodel.write_version(tmp_path)
    other_labels(tmp_path, "green", "red", "cyan")

    labels = compared(tmp_path).labels

    assert (labels.n_shared, labels.removed, labels.added) == (2, ("blue",), ("cyan",))
    assert labels.moved == {"green": (1, 0), "red": (0, 1)}


def test_classes_of_the_same_graph_with_other_names_are_renamed(tmp_path):
    tinymodel.write_version(tmp_path)
    other_labels(tmp_path, "rot", "green", "blue", graph_file=tinymodel.graph())

    found = compared(tmp_path, folder=write_pictures(tmp_path / "p", "rot/red", "red/red"))

    assert found.labels.renamed == {"red": "rot"}
    assert found.answers
    assert found.answers.n_same == 2
    assert found.answers.accuracy
    assert found.answers.accuracy.n == 2  # a folder may have the old name


@pytest.mark.parametrize("swapped", [False, True])
def test_renames_that_a_version_states_are_known_in_both_directions(tmp_path, swapped):
    tinymodel.write_version(tmp_path)
    comparison = {"version": 1, "n_images": 0, "changed_answers": 0, "labels_renamed": {"red": "r"}}
    other_labels(tmp_path, "r", "green", "blue", comparison=comparison)
    keys = (("tiny", 2), ("tiny", 1)) if swapped else (("tiny", 1), ("tiny", 2))

    found = difference(tmp_path, keys, None, [], 0, "cpu")

    assert found.labels.renamed == ({"r": "red"} if swapped else {"red": "r"})


def test_facts_say_what_differs(tmp_path):
    metrics = {
        "top1_percent": 90.0,
        "top5_percent": 99.0,
        "n_images": 100,
        "standard_error": 3.0,
        "dataset": "d",
    }
    tinymodel.write_version(tmp_path, metrics=metrics, calibration={"ece_percent": 2.0})
    tinymodel.write_version(tmp_path, version=2, kind="float32")

    found = compared(tmp_path)

    assert value(found, "top1_percent") == (90.0, None, False)
    assert value(found, "ece_percent") == (2.0, None, False)
    assert value(found, "in_graph") == (True, False, False)
    assert value(found, "interpolation") == ("bilinear", "bilinear", True)
    assert value(found, "input_layout") == ("NHWC", "NCHW", False)
    assert value(found, "precision") == ("fp32", "fp32", True)
    sizes = [
        sum(path.stat().st_size for path in (tmp_path / "tiny" / n).rglob("*") if path.is_file())
        for n in "12"
    ]
    assert value(found, "version_bytes")[:2] == tuple(sizes)
    assert value(found, "graph_bytes")[0] == len(tinymodel.graph())


def test_changed_answers_are_listed_with_both_probabilities(tmp_path):
    tinymodel.write_version(tmp_path)
    other_labels(tmp_path, "red", "cyan", "blue")
    pictures = write_pictures(tmp_path / "p", "red", "green")

    answers = compared(tmp_path, folder=pictures).answers

    assert answers
    (changed,) = answers.changed
    assert isinstance(changed, ChangedAnswer)
    assert changed.file == str(pictures / "green.png")
    assert (changed.a.label, changed.a.index) == ("green", 1)
    assert (changed.b.label, changed.b.index) == ("cyan", 1)
    assert changed.a.probability == pytest.approx(tinymodel.expected((0, 255, 0))[1], abs=1e-3)
    assert answers.mean_kl is None  # the classes differ


def test_accuracy_is_of_the_classes_that_both_have(tmp_path):
    tinymodel.write_version(tmp_path)
    other_labels(tmp_path, "green", "red", "cyan")  # so it takes red for green
    pictures = write_pictures(
        tmp_path / "p", "red/red", "red/blue", "green/green", "blue/blue", "other/red", "blue"
    )

    answers = compared(tmp_path, folder=pictures).answers

    assert answers
    accuracy = answers.accuracy
    assert accuracy
    assert (accuracy.n, accuracy.b_percent) == (3, 0.0)
    assert accuracy.a_percent == pytest.approx(200 / 3)
    assert accuracy.difference_percent.value == pytest.approx(-200 / 3)
    low, high = accuracy.difference_percent.low, accuracy.difference_percent.high
    assert low < accuracy.difference_percent.value < high
    assert answers.n_other_class == 1
    assert {
        one.file.removeprefix(str(pictures)): one.label
        for one in answers.changed
        if isinstance(one, ChangedAnswer)
    }["/blue/blue.png"] == "blue"


def test_versions_without_a_common_class_share_no_answer(tmp_path):
    tinymodel.write_version(tmp_path)
    other_labels(tmp_path, "a", "b", "c")

    found = compared(tmp_path, folder=write_pictures(tmp_path / "p", "red", "blue"))

    assert found.labels.n_shared == 0
    assert found.answers
    assert (found.answers.n, found.answers.n_same) == (2, 0)


def test_models_of_different_kinds_are_compared(tmp_path):
    tinymodel.write_version(tmp_path)
    tinymodel.write_version(tmp_path, "float", kind="float32")
    pictures = write_pictures(tmp_path / "p", "red", "blue")

    answers = compared(tmp_path, ("float", 1), pictures).answers

    assert answers
    assert answers.n_same == 2
    assert answers.max_probability_change == pytest.approx(0, abs=1e-6)


def compare_rows(
    folder: Path, a: Manifest, b: Manifest, rows: list[list[list[float]]]
) -> AnswerDifference:
    """Compares made-up answers to pictures red/0.png, red/1.png, ...: rows of A, then rows of B."""
    before, after = (np.array(side, dtype=np.float32) for side in rows)
    files = tuple(folder / "red" / f"{number}.png" for number in range(len(before)))
    answered = AnsweredFiles(files, before, after, {})
    found = compare_answers(answered, folder, a, b, label_changes(a, b))
    assert found
    return found


def test_versions_with_sigmoid_are_compared_by_the_labels_above_one_half(tmp_path):
    one = tinymodel.write_version(tmp_path, activation="sigmoid")
    before = [[0.9, 0.6, 0.1], [0.9, 0.6, 0.1], [0.2, 0.1, 0.0]]
    after = [[0.6, 0.9, 0.2], [0.7, 0.4, 0.5], [0.1, 0.2, 0.0]]

    found = compare_rows(tmp_path, one, one, [before, after])

    # The first class of the first and of the third changes, but their labels do not.
    assert (found.n, found.n_same) == (3, 2)
    (changed,) = found.changed
    assert changed == ChangedLabels(
        str(tmp_path / "red" / "1.png"),
        gained=(LabelProbabilities("blue", 0.1, 0.5),),
        lost=(LabelProbabilities("green", 0.6, 0.4),),
    )
    assert found.max_probability_change == pytest.approx(0.4)
    assert found.mean_kl
    assert found.accuracy is None  # though the folder names a class


def test_labels_that_one_version_lacks_are_gained_or_lost(tmp_path):
    a = tinymodel.write_version(tmp_path, activation="sigmoid")
    labels = [{"index": 0, "name": "cyan"}, {"index": 1, "name": "red"}]
    b = a.model_copy(update={"labels": tuple(map(Label.model_validate, labels))})
    b = b.model_copy(update={"graph": a.graph.model_copy(update={"sha256": "0" * 64})})

    found = compare_rows(tmp_path, a, b, [[[0.9, 0.2, 0.8]], [[0.7, 0.9]]])

    (changed,) = found.changed
    assert isinstance(changed, ChangedLabels)
    assert changed.gained == (LabelProbabilities("cyan", 0.0, 0.7),)
    assert changed.lost == (LabelProbabilities("blue", 0.8, 0.0),)
    assert found.mean_kl is None


def test_sigmoid_and_softmax_are_compared_by_their_first_classes_only(tmp_path):
    a = tinymodel.write_version(tmp_path)
    b = a.model_copy(update={"activation": "sigmoid"})
    rows = [[[0.8, 0.1, 0.1], [0.8, 0.1, 0.1]], [[0.9, 0.8, 0.1], [0.6, 0.9, 0.1]]]

    found = [compare_rows(tmp_path, *pair, rows) for pair in ((a, b), (b, a))]

    for one in found:
        (changed,) = one.changed
        assert isinstance(changed, ChangedAnswer)
        assert (one.n_same, changed.label, changed.b.label) == (1, "red", "green")
        assert (one.mean_kl, one.max_probability_change, one.accuracy) == (None, None, None)


def test_a_version_that_is_not_valid_is_refused(tmp_path):
    tinymodel.write_version(tmp_path)
    tinymodel.write_version(tmp_path, version=2)
    (tmp_path / "tiny" / "2" / "model.onnx").write_bytes(b"corrupt")

    with pytest.raises(ModelError, match="tiny/2"):
        compared(tmp_path)


def test_pictures_that_cannot_be_decoded_are_listed(tmp_path):
    for number in (1, 2):
        tinymodel.write_version(tmp_path, version=number)
    pictures = write_pictures(tmp_path / "p", "red")
    (pictures / "no.png").write_bytes(b"no picture")
    (pictures / "gone.png").symlink_to(tmp_path / "nowhere")

    files = [pictures / "gone.png", pictures / "no.png", pictures / "red.png"]
    keys = (("tiny", 1), ("tiny", 2))
    found = difference(tmp_path, keys, pictures, files, 0, "cpu")

    assert found.answers
    assert found.answers.n == 1
    assert list(found.refused) == [str(pictures / "gone.png"), str(pictures / "no.png")]
    assert found.refused[str(pictures / "gone.png")] == "No such file or directory"


def test_speed_is_measured_with_the_pictures_or_with_our_own(tmp_path, monkeypatch):
    for number in (1, 2):
        tinymodel.write_version(tmp_path, version=number)
    pictures = write_pictures(tmp_path / "p", "red", "blue")
    files = [pictures / "red.png", pictures / "blue.png"]
    keys = (("tiny", 1), ("tiny", 2))

    speed = difference(tmp_path, keys, pictures, files, 1e-9, "cpu").speed
    assert speed
    assert speed.n_pictures == 2

    monkeypatch.setattr(module, "varied_examples", list)
    speed = difference(tmp_path, keys, None, [], 1e-9, "cpu").speed
    assert speed
    assert speed.n_pictures == 3  # the golden ones
