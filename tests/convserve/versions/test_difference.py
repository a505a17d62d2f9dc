from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contract.errors import ModelError
from convserve.versions import difference as module
from convserve.versions.answers import AnsweredFiles, compare_answers
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
    assert {one.file.removeprefix(str(pictures)): one.label for one in answers.changed}[
        "/blue/blue.png"
    ] == "blue"


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
    assert (answers.n_same, answers.max_probability_change < 1e-6) == (2, True)


def test_probabilities_that_do_not_sum_to_1_have_no_kl(tmp_path):
    manifest = tinymodel.write_version(tmp_path)
    several = manifest.model_copy(update={"activation": "sigmoid"})
    answers = np.array([[0.9, 0.8, 0.1]], dtype=np.float32)
    answered = AnsweredFiles((tmp_path / "a.png",), answers, answers, {})

    found = [
        compare_answers(answered, tmp_path, manifest, b, label_changes(manifest, b))
        for b in (manifest, several)
    ]

    assert [one is not None and one.mean_kl is None for one in found] == [False, True]


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
