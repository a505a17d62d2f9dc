import numpy as np
import pytest

from contract.preprocessing import read_input
from contract.statistics import picture_statistics
from tests.training.helpers import tinynet
from training.evaluation.reference import InputRecorder
from training.evaluation.scorer import Scorer


def test_recorder_prepares_as_before_and_counts_every_picture_once(tiny_graph, colour_pictures):
    draft = tinynet.draft(tiny_graph)
    recorder = InputRecorder()

    answers = Scorer(tiny_graph, draft, prepare=recorder).probabilities(colour_pictures)

    np.testing.assert_array_equal(answers, Scorer(tiny_graph, draft).probabilities(colour_pictures))
    found = recorder.reference(answers, "colours")
    assert (found.dataset, found.n_images, found.first_class) == ("colours", 9, (3, 3, 3))
    rows = [read_input(picture.data, draft) for picture in colour_pictures]
    means = np.mean([picture_statistics(row, draft).mean for row in rows], axis=0)
    assert found.channel_mean == pytest.approx(tuple(means), abs=1e-5)
