from dataclasses import replace

import numpy as np
import pytest

from contract.predictions import softmax
from tests.training.helpers import tinynet
from training.data.pictures import Picture
from training.errors import GateFailed, GraphRefused, PicturesMissing
from training.evaluation.scorer import Scorer, accuracy, agreement_percent, answer_labelled
from training.evaluation.session import SessionPlan

ROWS = np.array(
    [[0.5, 0.3, 0.1, 0.05, 0.03, 0.02], [0.02, 0.03, 0.05, 0.1, 0.3, 0.5]], dtype=np.float32
)


def test_accuracy_counts_top1_and_top5_with_the_standard_error():
    metrics = accuracy(ROWS, np.array([0, 0]), "two rows")

    assert (metrics.top1_percent, metrics.top5_percent) == (50.0, 50.0)
    assert metrics.standard_error == pytest.approx(100 * np.sqrt(0.25 / 2), abs=1e-3)
    assert (metrics.n_images, metrics.dataset) == (2, "two rows")


def test_accuracy_counts_a_class_among_the_first_five():
    assert accuracy(ROWS, np.array([4, 1]), "x").top5_percent == 100.0


def test_agreement_compares_first_classes():
    assert agreement_percent(ROWS, ROWS[::-1]) == 0.0
    assert agreement_percent(ROWS, ROWS) == 100.0


@pytest.mark.parametrize("batch_size", [1, 2, 7, 64])
def test_scorer_answers_do_not_depend_on_the_batch_size(tiny_graph, colour_pictures, batch_size):
    scorer = Scorer(tiny_graph, tinynet.draft(tiny_graph))

    answers = scorer.probabilities(iter(colour_pictures), batch_size)

    np.testing.assert_allclose(answers, scorer.probabilities(colour_pictures, 1), atol=1e-6)
    assert answers.shape == (9, 3)


@pytest.mark.parametrize("plan", [SessionPlan(threads=1), SessionPlan(optimise=False)])
def test_scorer_answers_do_not_depend_on_the_session_plan(tiny_graph, colour_pictures, plan):
    draft = tinynet.draft(tiny_graph)

    answers = Scorer(tiny_graph, draft, plan).probabilities(colour_pictures)

    expected = Scorer(tiny_graph, draft).probabilities(colour_pictures)
    np.testing.assert_allclose(answers, expected, atol=1e-5)


def test_scorer_without_pictures_is_refused(tiny_graph):
    with pytest.raises(PicturesMissing):
        Scorer(tiny_graph, tinynet.draft(tiny_graph)).probabilities([])


def test_scorer_whose_graph_answers_nan_fails(tiny_graph, colour_pictures, monkeypatch):
    monkeypatch.setattr(
        "training.evaluation.scorer.run_outputs",
        lambda *_: [np.full((9, 3), np.nan, dtype=np.float32)],
    )

    with pytest.raises(GateFailed, match="not finite"):
        Scorer(tiny_graph, tinynet.draft(tiny_graph)).probabilities(colour_pictures)


def test_scorer_answers_probabilities_that_are_the_softmax_of_its_logits(
    tiny_graph, colour_pictures
):
    scorer = Scorer(tiny_graph, tinynet.draft(tiny_graph))

    probabilities, logits = scorer.probabilities_and_logits(colour_pictures)

    assert np.abs(softmax(logits) - probabilities).max() < 1e-6
    assert np.array_equal(probabilities, scorer.probabilities(colour_pictures))


def test_scorer_of_a_graph_without_logits_refuses_them(tiny_graph, colour_pictures):
    draft = tinynet.draft(tiny_graph)
    outputs = tuple(output for output in draft.graph.outputs if output.kind != "logits")
    draft = replace(draft, graph=draft.graph.model_copy(update={"outputs": outputs}))

    with pytest.raises(GraphRefused, match="logits"):
        Scorer(tiny_graph, draft).probabilities_and_logits(colour_pictures)


def test_answer_labelled_returns_answers_and_classes_in_one_order(tiny_graph, colour_pictures):
    scorer = Scorer(tiny_graph, tinynet.draft(tiny_graph))

    answers, indexes = answer_labelled(scorer, colour_pictures)

    assert indexes.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert answers.argmax(axis=1).tolist() == indexes.tolist()


def test_answer_labelled_without_a_label_is_refused(tiny_graph):
    scorer = Scorer(tiny_graph, tinynet.draft(tiny_graph))

    with pytest.raises(PicturesMissing, match=r"a.png has no class"):
        answer_labelled(scorer, [Picture("a.png", tinynet.picture("red"))])
