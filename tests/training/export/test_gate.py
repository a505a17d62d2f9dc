import numpy as np
import pytest

from contract.comparison import UNKNOWN
from training.errors import HalfPrecisionFailed, QuantizationFailed
from training.export.gate import (
    CONFIG_KEYS,
    LowerPrecision,
    PrecisionReference,
    decided,
    pass_gate,
)

INT8, FP16 = LowerPrecision("int8"), LowerPrecision("fp16")


def answers(*firsts, sure=0.9):
    """Returns a row of two probabilities for each given first class."""
    return np.array([(sure, 1 - sure) if first == 0 else (1 - sure, sure) for first in firsts])


def flipped(n, wrong):
    """Returns the float answers to n pictures of class 0, and answers of which some are wrong."""
    return answers(*[0] * n, sure=0.51), answers(*[1] * wrong, *[0] * (n - wrong), sure=0.51)


def test_gate_counts_bundled_pictures_only_if_the_float_graph_is_decided():
    before = np.array([[0.5, 0.4, 0.1], [0.7, 0.2, 0.1]], dtype=np.float32)

    assert decided(PrecisionReference([], before)).tolist() == [True, True]
    assert decided(PrecisionReference([], before, bundled=True)).tolist() == [False, True]


@pytest.mark.parametrize(
    ("target", "failure"), [(INT8, QuantizationFailed), (FP16, HalfPrecisionFailed)]
)
def test_gate_fails_without_a_decided_bundled_picture(target, failure):
    undecided = np.full((4, 3), 1 / 3, dtype=np.float32)

    with pytest.raises(failure, match="--evaluate"):
        pass_gate(undecided, PrecisionReference([], undecided, bundled=True), target)


def test_gate_returns_and_logs_the_loss_with_its_bounds(caplog):
    before, after = flipped(100, 1)

    loss = pass_gate(after, PrecisionReference([], before, np.zeros(100, dtype=int)), INT8)

    assert (loss.drop_percent, loss.agreement_percent, loss.max_difference) == (1.0, 99.0, 0.02)
    assert caplog.messages == [
        "int8: same first class as float in 99.00% (94.55 to 99.82) of 100 pictures, mean KL 8e-06 "
        "(0 to 2.42e-05) on 100, top-1 -1.00 points (-4.30 to +2.34) on 100"
    ]


def test_gate_with_sigmoid_compares_the_labels(caplog):
    before = np.array([[0.9, 0.6], [0.9, 0.1]] * 50)
    after = before.copy()
    after[0, 1] = 0.49  # loses a label, and the first class stays

    reference = PrecisionReference([], before, activation="sigmoid")
    loss = pass_gate(after, reference, INT8)

    assert loss.agreement_percent == 99.0
    assert "same labels above 0.5 as float in 99.00% (94.55 to 99.82) of 100" in caplog.text
    after[:10, 1] = 0.49
    with pytest.raises(QuantizationFailed, match=r"same labels above 0\.5 in 95\.00%"):
        pass_gate(after, reference, INT8)


def test_gate_with_sigmoid_fails_if_no_picture_has_a_label():
    nothing = np.full((4, 3), 0.1)

    with pytest.raises(QuantizationFailed, match="finds no label in any of the pictures"):
        pass_gate(nothing, PrecisionReference([], nothing, activation="sigmoid"), INT8)


@pytest.mark.parametrize(
    ("n", "wrong", "fails"),
    [
        pytest.param(13, 1, False, id="one-of-13-is-chance"),
        pytest.param(225, 4, False, id="four-of-225-is-chance"),
        pytest.param(225, 12, True, id="twelve-of-225-is-not"),
        pytest.param(1000, 30, True, id="three-percent-of-1000"),
    ],
)
def test_gate_fails_if_the_upper_bound_of_agreement_is_too_low(n, wrong, fails):
    before, after = flipped(n, wrong)
    reference = PrecisionReference([], before)

    if not fails:
        pass_gate(after, reference, INT8)
        return
    with pytest.raises(QuantizationFailed, match=r"confidence below 98% \(--min-agreement\)"):
        pass_gate(after, reference, INT8)


def test_gate_fails_if_the_lower_bound_of_the_drop_is_too_high():
    before, after = flipped(500, 12)
    reference = PrecisionReference([], before, np.zeros(500, dtype=int))
    loose = LowerPrecision("int8", min_agreement_percent=90)

    with pytest.raises(QuantizationFailed) as failure:
        pass_gate(after, reference, loose)

    assert (
        "2.40 (0.94 to 3.84) points of top-1 lost on 500 pictures, with 95% confidence more than 0.5"
        in (str(failure.value))
    )
    pass_gate(after, reference, LowerPrecision("int8", min_agreement_percent=90, max_drop=1))


def test_gate_measures_the_drop_on_labelled_pictures_only():
    before, after = flipped(500, 5)
    indexes = np.full(500, UNKNOWN)
    indexes[:2] = 0

    loss = pass_gate(after, PrecisionReference([], before, indexes), INT8)

    assert (loss.drop_percent, loss.found.n_labelled, loss.agreement_percent) == (100.0, 2, 99.0)


@pytest.mark.parametrize(
    ("target", "after", "bundled", "limit"),
    [
        pytest.param(INT8, 0.8, False, "0.015", id="int8"),
        pytest.param(INT8, 0.6, True, "0.15", id="int8-bundled"),
        pytest.param(FP16, 0.88, False, "0.001", id="fp16"),
    ],
)
def test_gate_fails_if_the_mean_kl_is_too_high(target, after, bundled, limit):
    reference = PrecisionReference([], answers(*[0] * 10), bundled=bundled)

    with pytest.raises(
        (QuantizationFailed, HalfPrecisionFailed), match=rf"above {limit} \(--max-kl\)"
    ):
        pass_gate(answers(*[0] * 10, sure=after), reference, target)


def test_gate_allows_bundled_pictures_ten_times_the_kl():
    reference = PrecisionReference([], answers(*[0] * 10), bundled=True)

    assert pass_gate(answers(*[0] * 10, sure=0.8), reference, INT8).found.kl.value > 0.015


def test_gate_takes_a_limit_that_is_given_for_all_pictures():
    reference = PrecisionReference([], answers(*[0] * 10), bundled=True)

    with pytest.raises(QuantizationFailed, match=r"above 0\.02"):
        pass_gate(answers(*[0] * 10, sure=0.8), reference, LowerPrecision("int8", max_kl=0.02))


@pytest.mark.parametrize(
    ("target", "ways"),
    [
        pytest.param(
            INT8,
            "You can measure on more pictures with --evaluate, use --fp16, publish the float graph with "
            "--float-if-fails, or change the limit",
            id="import",
        ),
        pytest.param(
            LowerPrecision("int8", or_float=True, names=CONFIG_KEYS),
            'You can add pictures, set publish.precision = "fp16", or change the limit',
            id="fit",
        ),
        pytest.param(
            LowerPrecision("fp16", names=CONFIG_KEYS),
            "You can add pictures, or change the limit",
            id="fit-fp16",
        ),
    ],
)
def test_gate_that_fails_says_what_can_be_done(target, ways):
    before, after = flipped(225, 40)

    with pytest.raises((QuantizationFailed, HalfPrecisionFailed)) as failure:
        pass_gate(after, PrecisionReference([], before), target)

    assert str(failure.value).endswith(ways)
    assert target.names.min_agreement in str(failure.value)


def test_bundled_pictures_count_for_a_graph_of_one_class():
    one = np.ones((3, 1), dtype=np.float32)

    assert decided(PrecisionReference([], one, bundled=True)).all()
