import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from contract.errors import GoldenMismatch
from contract.manifest import HalfPrecision
from contract.predictions import check_golden
from contract.preprocessing import golden_inputs
from tests.training.export.test_fp16 import scaled
from tests.training.helpers import tinynet
from training.data.pictures import Picture
from training.data.samples import Sample
from training.errors import VersionUnproven
from training.evaluation.scorer import Scorer
from training.release.golden import (
    MAX_TOLERANCE,
    MIN_TOLERANCE,
    SERVED_MARGIN,
    _example,
    choose_surest,
    make_golden,
)


def test_golden_examples_pass_on_the_graph_they_were_made_with(tiny_graph, colour_pictures):
    draft = tinynet.draft(tiny_graph)

    examples = make_golden(draft, colour_pictures, max_batch=4)

    assert len(examples) == len(colour_pictures)
    scorer = Scorer(tiny_graph, draft)
    for example, picture in zip(examples, colour_pictures, strict=True):
        assert example.file == f"golden/{picture.name}"
        assert example.top5[0].label == tinynet.NAMES[picture.index]
        check_golden(example, scorer.probabilities([picture], 1)[0], served=True)


def answers(*rows):
    return np.array(rows, dtype=np.float32)


@pytest.mark.parametrize(
    ("variants", "tolerance"),
    [
        pytest.param(answers([0.8, 0.1, 0.1]), MIN_TOLERANCE, id="no-spread"),
        pytest.param(answers([0.8, 0.1, 0.1], [0.82, 0.09, 0.09]), 0.06, id="three-times-spread"),
        pytest.param(answers([0.5, 0.49, 0.01]), None, id="undecided"),
        pytest.param(answers([0.5, 0.2, 0.3], [0.6, 0.2, 0.2]), None, id="not-safe"),
        pytest.param(answers([0.9, 0.1, 0.0], [0.8, 0.2, 0.0]), None, id="too-loose"),
    ],
)
def test_golden_tolerance_follows_the_spread(tiny_graph, variants, tolerance):
    picture = Picture("a.png", b"data")

    example = _example(picture, variants, variants[0], tinynet.draft(tiny_graph))

    assert (example and example.tolerance) == (tolerance and pytest.approx(tolerance))
    assert tolerance is None or tolerance <= MAX_TOLERANCE


@pytest.mark.parametrize(
    ("served", "tolerance"),
    [
        pytest.param([0.8, 0.1, 0.1], 0.02, id="equal"),
        pytest.param([0.795, 0.105, 0.1], 0.02, id="within-the-margin"),
        pytest.param([0.785, 0.115, 0.1], None, id="beyond-the-margin"),
    ],
)
def test_golden_example_is_served_within_the_margin(tiny_graph, served, tolerance):
    picture, exact = Picture("a.png", b"data"), answers([0.8, 0.1, 0.1])

    example = _example(picture, exact, answers(served)[0], tinynet.draft(tiny_graph))

    assert (example and example.served_tolerance) == tolerance


def test_golden_picture_with_an_undecided_answer_as_a_request_is_skipped(tiny_graph):
    # The lead is more than twice the tolerance, 0.01, but not twice the served one, 0.02.
    row = answers([0.515, 0.485, 0.0])

    assert _example(Picture("a.png", b"data"), row, row[0], tinynet.draft(tiny_graph)) is None


def test_make_golden_without_a_picture_that_is_served_alike_is_refused(tiny_graph, monkeypatch):
    draft = tinynet.draft(tiny_graph)
    picture = Picture("a.png", tinynet.picture("red"))
    exact, _ = golden_inputs(picture.data, draft)
    monkeypatch.setattr("training.release.golden.golden_inputs", lambda *_: (exact, exact // 2))

    with pytest.raises(VersionUnproven, match=r"served within 0\.01"):
        make_golden(draft, [picture], max_batch=2)


def test_golden_tolerance_of_a_float16_graph_covers_its_rounding(
    tiny_graph, colour_pictures, monkeypatch
):
    less_sure = scaled(tiny_graph, classifier=0.6)
    monkeypatch.setattr("training.release.golden.emulate_fp16", lambda _: less_sure)
    loss = HalfPrecision(method="made up", top1_agreement_percent=100, max_abs_difference=0)
    draft = replace(tinynet.draft(tiny_graph), half_precision=loss)

    examples = make_golden(draft, colour_pictures, max_batch=2)

    scorer = Scorer(less_sure, draft)
    pictures = {f"golden/{picture.name}": picture for picture in colour_pictures}
    assert examples
    for example in examples:
        assert example.tolerance > MIN_TOLERANCE
        assert example.served_tolerance == pytest.approx(
            example.tolerance + SERVED_MARGIN[draft.precision]
        )
        check_golden(example, scorer.probabilities([pictures[example.file]], 1)[0])


def less_sure(draft, factor):
    return replace(draft, model=scaled(draft.model, classifier=factor))


def test_golden_examples_of_an_unsure_network_compare_its_probabilities(
    tiny_graph, colour_pictures
):
    draft = less_sure(tinynet.draft(tiny_graph), 0.003)

    examples = make_golden(draft, colour_pictures, max_batch=4, known=False)

    assert [example.file for example in examples] == [f"golden/{p.name}" for p in colour_pictures]
    scorer = Scorer(draft.model, draft)
    for example, picture in zip(examples, colour_pictures, strict=True):
        assert example.undecided
        first = example.top5[0].probability
        assert first < 0.36
        assert example.tolerance == pytest.approx(2 * first * MIN_TOLERANCE, abs=1e-6)
        assert example.served_tolerance == pytest.approx(4 * first * MIN_TOLERANCE, abs=2e-6)
        check_golden(example, scorer.probabilities([picture], 1)[0], served=True)


def test_golden_examples_of_an_unsure_network_find_another_order_of_the_labels(
    tiny_graph, colour_pictures
):
    draft = less_sure(tinynet.draft(tiny_graph), 0.01)
    examples = make_golden(draft, colour_pictures, max_batch=4, known=False)

    answer = Scorer(draft.model, draft).probabilities([colour_pictures[0]], 1)[0]

    assert examples[0].undecided
    check_golden(examples[0], answer)
    with pytest.raises(GoldenMismatch, match="a probability differs"):
        check_golden(examples[0], np.roll(answer, 1))


def test_unsure_network_must_be_sure_about_a_picture_of_its_classes(tiny_graph, colour_pictures):
    draft = less_sure(tinynet.draft(tiny_graph), 0.003)

    with pytest.raises(VersionUnproven, match=r"clear first class .* --golden"):
        make_golden(draft, colour_pictures, max_batch=4)


def test_golden_examples_with_one_clear_picture_have_no_undecided_one(tiny_graph):
    grey, red = picture("grey", (128, 102, 77)), Picture("red.png", tinynet.picture("red"))

    examples = make_golden(tinynet.draft(tiny_graph), [grey, red], max_batch=2, known=False)

    assert [(example.file, example.undecided) for example in examples] == [("golden/red.png", None)]


def picture(name, colour):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), colour).save(buffer, "PNG")
    return Picture(f"{name}.png", buffer.getvalue())


@pytest.mark.parametrize(
    ("row", "tolerance", "served_tolerance"),
    [
        pytest.param([0.5, 0.49, 0.01], 0.01, 0.02, id="one-half"),
        pytest.param([0.51, 0.49, 0.0], 0.01, 0.02, id="above"),
        pytest.param([0.02, 0.0199, 0.01], 0.0004, 0.0008, id="small"),
        pytest.param([1e-7, 0.0, 0.0], 1e-6, 1e-6, id="less-than-published-digits"),
    ],
)
def test_golden_tolerance_without_a_clear_class_shrinks_with_the_probabilities(
    tiny_graph, row, tolerance, served_tolerance
):
    exact = answers(row)

    example = _example(
        Picture("a.png", b"data"), exact, exact[0], tinynet.draft(tiny_graph), undecided=True
    )

    assert example is not None
    assert example.tolerance == pytest.approx(tolerance)
    assert example.served_tolerance == pytest.approx(served_tolerance, abs=1e-8)


def test_golden_picture_without_a_clear_class_is_served_within_a_smaller_margin(tiny_graph):
    exact, served = answers([0.02, 0.0199, 0.01]), answers([0.021, 0.0199, 0.01])

    example = _example(
        Picture("a.png", b"data"), exact, served[0], tinynet.draft(tiny_graph), undecided=True
    )

    assert example is None


def sample(colour, number):
    index = tinynet.NAMES.index(colour)
    return Sample(f"{colour}{number}", index, data=tinynet.picture(colour, number))


def test_choose_surest_takes_classes_in_turn_and_no_wrong_predictions():
    samples = [sample("red", 0), sample("red", 1), sample("green", 2), sample("blue", 3)]
    rows = [[0.8, 0.1, 0.1], [0.9, 0.1, 0.0], [0.3, 0.6, 0.1], [0.7, 0.2, 0.1]]
    answers = np.array(rows, dtype=np.float32)

    chosen = choose_surest(samples, tinynet.labels(), answers, 3)

    assert [picture.name for picture in chosen] == ["00-red.png", "01-green.png", "02-red.png"]
    assert [picture.data for picture in chosen] == [samples[i].data for i in (1, 2, 0)]


def test_choose_surest_without_a_right_prediction_is_empty():
    wrong = np.array([[0.1, 0.9, 0.0]], dtype=np.float32)

    assert choose_surest([sample("red", 0)], tinynet.labels(), wrong, 3) == []


def test_no_golden_candidate_is_a_failed_gate(tiny_graph):
    with pytest.raises(VersionUnproven, match="no test picture right"):
        make_golden(tinynet.draft(tiny_graph), [], max_batch=4)
