from dataclasses import replace

import numpy as np
import pytest

from contract.manifest import Label
from tests.training.helpers import tinynet
from training.data.pictures import Picture
from training.errors import LabelsChanged, VersionWorse
from training.evaluation.scorer import Scorer
from training.export import gate as precision_gate
from training.export.describe import describe_export
from training.export.export import export
from training.release.golden import make_golden
from training.release.model_card import model_card
from training.release.publish import Destination, publish
from training.release.replacement import (
    AnsweredPictures,
    check_labels,
    compare_with_replaced,
    find_replaced,
)


@pytest.fixture(scope="module")
def four_classes() -> bytes:
    return export(tinynet.wrapped(tinynet.TinyNet(4).eval()), tinynet.SIDE_PX)


def labels(*names):
    return tuple(Label(index=i, name=name) for i, name in enumerate(names))


def draft_of(graph, *names, version=2):
    draft = replace(tinynet.draft(graph), version=version, graph=describe_export(graph))
    return replace(draft, labels=labels(*names)) if names else draft


def publish_first(models_dir, graph, *names, version=1, activation="softmax"):
    draft = replace(draft_of(graph, *names, version=version), activation=activation)
    picture = Picture("red.png", tinynet.picture("red"))
    files = {"model.onnx": graph, "golden/red.png": picture.data}
    publish(models_dir, draft.to_manifest(make_golden(draft, [picture], 2), files), files)


def answered(draft, pictures):
    """Returns the pictures with the draft's answers, as the evidence of a version does."""
    answers = Scorer(draft.model, draft).probabilities(pictures)
    indexes = np.array([picture.index for picture in pictures])
    return AnsweredPictures(pictures, answers, indexes)


def to(models_dir, version=2, **allowed):
    return Destination(models_dir, "tiny", version, **allowed)


def test_first_version_is_compared_with_nothing(tmp_path, tiny_graph, colour_pictures, caplog):
    draft = draft_of(tiny_graph)

    assert compare_with_replaced(draft, to(tmp_path), answered(draft, colour_pictures)) is draft
    assert caplog.messages == []


def test_equal_version_replaces_the_one_before(tmp_path, tiny_graph, colour_pictures, caplog):
    publish_first(tmp_path, tiny_graph)
    draft = draft_of(tiny_graph)

    found = compare_with_replaced(draft, to(tmp_path), answered(draft, colour_pictures)).comparison

    assert found
    assert (found.version, found.n_images, found.changed_answers) == (1, 9, 0)
    assert (found.top1_before_percent, found.top1_after_percent) == (100, 100)
    assert found.difference_low_percent is not None
    assert found.difference_high_percent is not None
    assert found.difference_low_percent < 0 < found.difference_high_percent
    assert caplog.messages[-1] == (
        "compared with tiny/1 on 9 pictures: top-1 100.00% instead of 100.00%, a difference of +0.00 "
        "points (-25.20 to +25.20); 0 answers changed; the labels are the same"
    )


def test_worse_version_is_refused(tmp_path, tiny_graph, colour_pictures, caplog):
    publish_first(tmp_path, tiny_graph)
    draft = draft_of(tinynet.negated(tiny_graph))

    with pytest.raises(VersionWorse, match=r"tiny/2 is worse than tiny/1 .* 0\.00% instead of 100"):
        compare_with_replaced(draft, to(tmp_path), answered(draft, colour_pictures))

    assert "answers that changed: red0.png: 'red', now '" in caplog.messages[-1]
    assert caplog.messages[-1].endswith("; and 4 more")


def test_worse_version_is_accepted_if_allowed(tmp_path, tiny_graph, colour_pictures):
    publish_first(tmp_path, tiny_graph)
    draft = draft_of(tinynet.negated(tiny_graph))
    allowed = to(tmp_path, allow_worse=True)

    compared = compare_with_replaced(draft, allowed, answered(draft, colour_pictures))

    assert compared.comparison
    assert compared.comparison.difference_percent == -100
    assert "Compared with tiny/1 on 9 pictures: top-1 0.00% instead of" in model_card(compared)


def test_version_that_is_worse_within_the_bounds_is_accepted(tmp_path, tiny_graph, colour_pictures):
    publish_first(tmp_path, tiny_graph)
    draft = draft_of(tiny_graph)
    one_wrong = answered(draft, colour_pictures)
    one_wrong.answers[0] = [0, 1, 0]

    found = compare_with_replaced(draft, to(tmp_path), one_wrong).comparison

    assert found
    assert (found.difference_percent, found.changed_answers) == (-11.111, 1)


def test_better_version_is_accepted(tmp_path, tiny_graph, colour_pictures):
    publish_first(tmp_path, tinynet.negated(tiny_graph))
    draft = draft_of(tiny_graph)

    found = compare_with_replaced(draft, to(tmp_path), answered(draft, colour_pictures)).comparison

    assert found
    assert (found.difference_percent, found.changed_answers) == (100, 9)


def test_version_without_a_label_is_refused(tmp_path, tiny_graph, four_classes, colour_pictures):
    publish_first(tmp_path, four_classes, *tinynet.NAMES, "black")
    draft = draft_of(tiny_graph)
    message = r"tiny/2 would replace tiny/1.*labels gone: 'black'.*--allow-label-changes"

    with pytest.raises(LabelsChanged, match=message):
        check_labels(draft.labels, to(tmp_path))
    with pytest.raises(LabelsChanged, match=message):
        compare_with_replaced(draft, to(tmp_path), answered(draft, colour_pictures))

    allowed = to(tmp_path, allow_label_changes=True)
    check_labels(draft.labels, allowed)
    found = compare_with_replaced(draft, allowed, answered(draft, colour_pictures)).comparison
    assert found
    assert (found.labels_removed, found.n_images, found.top1_before_percent) == (("black",), 9, 100)


def test_version_with_one_label_more_is_accepted_and_compared_on_the_shared_classes(
    tmp_path, tiny_graph, four_classes, colour_pictures
):
    publish_first(tmp_path, tiny_graph)
    draft = draft_of(four_classes, "black", *tinynet.NAMES)
    pictures = [replace(one, index=one.index + 1) for one in colour_pictures]
    moved = answered(draft, pictures)
    answers = np.roll(moved.answers, 1, axis=1)  # the graph's own fourth class is the last
    black = Picture("black.png", tinynet.picture("red"), 0)
    with_black = AnsweredPictures(
        [*pictures, black],
        np.concatenate([answers, answers[:1]]),
        np.append(moved.indexes, 0),
    )

    check_labels(draft.labels, to(tmp_path))
    found = compare_with_replaced(draft, to(tmp_path), with_black).comparison

    assert found
    assert (found.labels_added, found.labels_removed) == (("black",), ())
    assert (found.n_images, found.changed_answers, found.top1_after_percent) == (9, 0, 100)


def test_label_under_another_name_is_found_by_the_answers(tmp_path, tiny_graph, colour_pictures):
    publish_first(tmp_path, tiny_graph)
    draft = draft_of(tiny_graph, "crimson", "green", "blue")

    with pytest.raises(LabelsChanged, match="labels renamed: 'red' to 'crimson'"):
        compare_with_replaced(draft, to(tmp_path), answered(draft, colour_pictures))

    allowed = to(tmp_path, allow_label_changes=True)
    found = compare_with_replaced(draft, allowed, answered(draft, colour_pictures)).comparison
    assert found
    assert found.labels_renamed == {"red": "crimson"}
    assert (found.labels_added, found.labels_removed) == ((), ())
    assert (found.n_images, found.changed_answers) == (9, 0)


def test_class_that_was_split_is_gone_not_renamed(tmp_path, tiny_graph, four_classes):
    publish_first(tmp_path, tiny_graph)
    draft = draft_of(four_classes, "dark red", "green", "blue", "light red")
    reds = [Picture(f"{i}.png", tinynet.picture("red", i), index) for i, index in enumerate((0, 3))]

    with pytest.raises(LabelsChanged) as failure:
        compare_with_replaced(draft, to(tmp_path), answered(draft, reds))

    assert "labels gone: 'red'; labels new: 'dark red', 'light red'" in str(failure.value)


def test_versions_without_a_common_class_are_not_compared_by_answers(
    tmp_path, tiny_graph, colour_pictures, caplog
):
    publish_first(tmp_path, tiny_graph)
    draft = draft_of(tinynet.negated(tiny_graph), "cat", "dog", "owl")
    # Its pictures are of other classes than the old version answers, each a different one.
    pictures = [Picture(f"{i}.png", one.data, i % 3) for i, one in enumerate(colour_pictures)]
    allowed = to(tmp_path, allow_label_changes=True, allow_worse=True)

    found = compare_with_replaced(draft, allowed, answered(draft, pictures)).comparison

    assert found
    assert (found.n_images, found.top1_before_percent) == (0, None)
    assert "no test picture shows a class that both know" in caplog.messages[-1]


def test_comparison_without_labelled_pictures_counts_changed_answers(
    tmp_path, tiny_graph, monkeypatch, caplog
):
    pytest.importorskip("skimage")
    monkeypatch.setattr(precision_gate, "_N_HELD_OUT", 16)
    publish_first(tmp_path, tiny_graph)

    found = compare_with_replaced(
        draft_of(tinynet.negated(tiny_graph)), to(tmp_path), None
    ).comparison

    assert found
    assert (found.n_images, found.top1_after_percent) == (16, None)
    assert found.changed_answers > 0
    assert "top-1 unknown, since the pictures have no labels" in caplog.text


@pytest.mark.parametrize(
    ("before", "after", "n_changed"),
    [("sigmoid", "sigmoid", 2), ("softmax", "sigmoid", 1), ("softmax", "softmax", 1)],
)
def test_networks_with_sigmoid_are_compared_by_the_labels_that_they_find(
    tmp_path, tiny_graph, colour_pictures, caplog, before, after, n_changed
):
    publish_first(tmp_path, tiny_graph, activation=before)
    draft = replace(draft_of(tiny_graph), activation=after)
    tested = AnsweredPictures(colour_pictures, answered(draft, colour_pictures).answers)
    tested.answers[:] = tested.answers.round()
    tested.answers[0] = [0.9, 0.7, 0]  # one label more, the same first class
    tested.answers[-1] = [0.4, 0.3, 0]  # no label, another first class

    found = compare_with_replaced(draft, to(tmp_path), tested).comparison

    assert found
    assert (found.n_images, found.changed_answers) == (9, n_changed)
    assert found.top1_after_percent is None
    first = "red0.png: 'red', now 'red', 'green'; " if n_changed == 2 else ""
    last = "no label" if n_changed == 2 else "'red'"
    assert caplog.messages[-1] == f"answers that changed: {first}blue2.png: 'blue', now {last}"


def test_damaged_version_is_reported_and_an_older_one_compared(
    tmp_path, tiny_graph, colour_pictures, caplog
):
    publish_first(tmp_path, tiny_graph, version=1)
    publish_first(tmp_path, tiny_graph, version=2)
    (tmp_path / "tiny" / "2" / "model.onnx").write_bytes(b"damaged")
    draft = draft_of(tiny_graph, version=3)

    found = compare_with_replaced(
        draft, to(tmp_path, 3), answered(draft, colour_pictures)
    ).comparison

    assert found
    assert found.version == 1
    (warning,) = [one for one in caplog.records if one.levelname == "WARNING"]
    assert "not compared with a damaged one: tiny/2: model.onnx is not the file" in warning.message


def test_damaged_version_alone_does_not_hinder_the_new_one(tmp_path, tiny_graph, colour_pictures):
    publish_first(tmp_path, tiny_graph)
    (tmp_path / "tiny" / "1" / "model.onnx").write_bytes(b"damaged")
    draft = draft_of(tiny_graph)

    assert compare_with_replaced(draft, to(tmp_path), answered(draft, colour_pictures)) is draft


def test_version_that_no_longer_runs_does_not_hinder_the_new_one(
    tmp_path, tiny_graph, colour_pictures, caplog
):
    def refuse(*_):
        raise RuntimeError("unknown operator")

    publish_first(tmp_path, tiny_graph)
    draft = draft_of(tiny_graph)
    broken = replace(answered(draft, colour_pictures), prepare=refuse)

    assert compare_with_replaced(draft, to(tmp_path), broken) is draft
    assert "tiny/1 does not run: unknown operator" in caplog.messages[-1]


@pytest.mark.parametrize(
    ("version", "replaced"),
    [pytest.param(3, 2, id="newest"), (2, 2), pytest.param(1, 1, id="replace"), (9, 2)],
)
def test_version_replaced_is_the_newest_up_to_its_number(tmp_path, tiny_graph, version, replaced):
    for number in (1, 2):
        publish_first(tmp_path, tiny_graph, version=number)

    found = find_replaced(to(tmp_path, version))

    assert found
    assert found.manifest.version == replaced


def test_version_below_all_others_replaces_none(tmp_path, tiny_graph):
    publish_first(tmp_path, tiny_graph, version=5)

    assert find_replaced(to(tmp_path, 4)) is None
