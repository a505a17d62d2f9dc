import numpy as np
import pytest

from contract.versions import sha256
from tests.training import tinynet
from tests.training.export.test_half import scaled
from training.errors import HalfPrecisionFailed
from training.evaluation.scorer import Scorer
from training.export.fp16 import make_fp16
from training.export.gate import Judgement
from training.export.half import METHOD
from training.export.int8 import CalibrationRows
from training.export.lower import lower
from training.export.plan import Fp16

OVERFLOWS = [
    pytest.param({"conv": 1e-5, "classifier": 1e7}, "fp16 costs", id="weights-too-large"),
    pytest.param({"classifier": 1e5}, "not finite", id="logits-too-large"),
]


def judged_by(graph, pictures):
    answers = Scorer(graph, tinynet.draft(graph)).probabilities(pictures)
    return Judgement(pictures, answers, np.array([picture.index for picture in pictures]))


def test_fp16_that_agrees_is_taken_with_its_cost(tiny_graph, colour_pictures, caplog):
    graph, draft = make_fp16(
        tiny_graph,
        tinynet.draft(tiny_graph),
        judgement=judged_by(tiny_graph, colour_pictures),
        plan=Fp16(),
    )

    assert draft.graph.sha256 == sha256(graph)
    assert draft.precision == "fp16"
    assert draft.half_precision
    assert draft.half_precision.method == METHOD
    assert draft.half_precision.accuracy_drop_percent == 0.0
    assert draft.half_precision.top1_agreement_percent == 100.0
    assert 0 < draft.half_precision.max_abs_difference < 2e-3
    assert caplog.messages[0].endswith("100.00 % of 9 pictures, 0.00 points of top-1 lost")


@pytest.mark.parametrize(("factors", "message"), OVERFLOWS)
def test_fp16_that_overflows_is_refused(tiny_graph, colour_pictures, factors, message):
    large = scaled(tiny_graph, **factors)

    with pytest.raises(HalfPrecisionFailed, match=message):
        make_fp16(
            large,
            tinynet.draft(large),
            judgement=judged_by(large, colour_pictures),
            plan=Fp16(),
        )


@pytest.mark.parametrize(("factors", "message"), OVERFLOWS)
def test_fp16_that_overflows_leaves_the_float_graph_where_asked(
    tiny_graph, colour_pictures, caplog, factors, message
):
    large = scaled(tiny_graph, **factors)
    float_draft = tinynet.draft(large)

    graph, draft = lower(
        large,
        float_draft,
        plan=Fp16(or_float=True),
        judgement=judged_by(large, colour_pictures),
        calibration=lambda _: CalibrationRows([], "nothing"),
    )

    assert (graph, draft) == (large, float_draft)
    assert message in caplog.messages[-1]
    assert caplog.messages[-1].endswith("the float graph is published instead")
