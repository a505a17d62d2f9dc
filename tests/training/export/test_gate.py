import numpy as np
import pytest

from training.errors import HalfPrecisionFailed, QuantizationFailed
from training.export.gate import (
    LowerPrecision,
    PrecisionLoss,
    PrecisionReference,
    decided,
    pass_gate,
)

DECIDED = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.1, 0.9]], dtype=np.float32)
LAST_SWAPPED = np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.6, 0.4]], dtype=np.float32)
CLASSES = np.array([0, 1, 0, 1])
INT8, FP16 = LowerPrecision("int8"), LowerPrecision("fp16")


def test_gate_without_labels_counts_decided_pictures_only():
    answers = np.array([[0.5, 0.4, 0.1], [0.7, 0.2, 0.1]], dtype=np.float32)

    assert decided(PrecisionReference([], answers)).tolist() == [False, True]


@pytest.mark.parametrize(
    ("target", "failure"), [(INT8, QuantizationFailed), (FP16, HalfPrecisionFailed)]
)
def test_gate_fails_without_a_decided_picture(target, failure):
    undecided = np.full((4, 3), 1 / 3, dtype=np.float32)

    with pytest.raises(failure, match="--evaluate"):
        pass_gate(undecided, PrecisionReference([], undecided), target)


def test_gate_returns_and_logs_the_loss(caplog):
    loss = pass_gate(
        LAST_SWAPPED, PrecisionReference([], DECIDED, CLASSES), LowerPrecision("int8", max_drop=30)
    )

    assert loss == PrecisionLoss(drop_percent=25.0, agreement_percent=75.0, max_difference=0.5)
    assert caplog.messages == [
        "int8: same first class as float in 75.00% of 4 pictures, 25.00 points of top-1 lost"
    ]


@pytest.mark.parametrize(
    ("target", "indexes", "failure", "message"),
    [
        (INT8, CLASSES, QuantizationFailed, "int8 costs 25.00 points of top-1, the limit is 2"),
        (INT8, None, QuantizationFailed, "int8 and float agree in 75.00% .* limit is 80%"),
        (FP16, CLASSES, HalfPrecisionFailed, "fp16 costs 25.00 points .* limit is 0.2"),
        (FP16, None, HalfPrecisionFailed, "fp16 and float agree in 75.00% .* limit is 99%"),
    ],
    ids=["int8-labels", "int8-unlabelled", "fp16-labels", "fp16-unlabelled"],
)
def test_gate_fails_beyond_the_limits(target, indexes, failure, message):
    with pytest.raises(failure, match=message):
        pass_gate(LAST_SWAPPED, PrecisionReference([], DECIDED, indexes), target)


@pytest.mark.parametrize(
    "target",
    [
        LowerPrecision("int8", min_agreement_percent=75),
        LowerPrecision("fp16", min_agreement_percent=75),
    ],
)
def test_gate_passes_at_the_limit(target):
    assert pass_gate(LAST_SWAPPED, PrecisionReference([], DECIDED), target).drop_percent is None
