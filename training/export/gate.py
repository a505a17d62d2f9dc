"""The gate of an int8 or float16 graph: what it loses against the float graph it was made from.

Both graphs answer the same pictures, with labels or without. Agreement and the mean Kullback-Leibler
divergence (KL) need no labels. With sigmoid, a picture agrees if the same labels reach 0.5. The drop of top-1 is measured where there are some. Agreement and drop
fail the gate only if the bound of their interval does, so that a small set does not decide by chance.

Bundled pictures are crops of a dozen photographs and show few of the classes. They are much harder than
photographs, so their limit of the KL is higher, and only those on which the float graph is decided count
for the agreement (docs/decisions/0039-gates-with-bounds.md).

Shapes: N pictures, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from contract.comparison import OUTCOMES, AnswerComparison, compare, given
from contract.manifest import Activation, FloatComparison, Measured
from contract.preprocessing import read_input
from training.data.photographs import picture_files, read_photographs
from training.data.pictures import Picture, ReadInput
from training.errors import HalfPrecisionFailed, PrecisionFailed, QuantizationFailed

log = logging.getLogger(__name__)

_N_HELD_OUT: Final = 400
_HELD_OUT_SEED: Final = 1_000_003  # far from any calibration seed

# A bundled picture counts for the agreement only if the first class leads the second by this
# probability. On the others, a tiny error changes the first class.
_DECIDED_LEAD: Final = 0.2

_FAILURES: Final[dict[str, type[PrecisionFailed]]] = {
    "int8": QuantizationFailed,
    "fp16": HalfPrecisionFailed,
}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a graph of lower precision may lose."""

    max_drop: float  # points of top-1; the lower bound must not exceed it
    min_agreement_percent: float  # of first classes; the upper bound must reach it
    max_kl: float  # mean over the pictures, in nats


# The KL of good int8 graphs of EfficientNet-Lite0 is 0.003 to 0.009 on photographs, of bad ones 0.03 to
# 0.045. With 0.015, one of 0.003 fails on 10 photographs in 0.3% of cases, one of 0.008 in 8%. On bundled
# pictures the KL is up to ten times as large.
_LIMITS: Final = {"int8": Limits(0.5, 98.0, 0.015), "fp16": Limits(0.2, 99.0, 0.001)}
_BUNDLED_KL_FACTOR: Final = 10


@dataclass(frozen=True, slots=True)
class LimitNames:
    """How the user changes each limit, and the ways out, for messages."""

    max_drop: str
    min_agreement: str
    max_kl: str
    more_pictures: str
    fp16: str
    or_float: str | None  # None: the float graph is published anyway


FLAGS: Final = LimitNames(
    "--max-drop",
    "--min-agreement",
    "--max-kl",
    more_pictures="measure on more pictures with --evaluate",
    fp16="use --fp16",
    or_float="publish the float graph with --float-if-fails",
)
CONFIG_KEYS: Final = LimitNames(
    "publish.max_drop",
    "publish.min_agreement_percent",
    "publish.max_kl",
    more_pictures="add pictures",
    fp16='set publish.precision = "fp16"',
    or_float=None,
)


@dataclass(frozen=True, slots=True)
class LowerPrecision:
    """A lower precision and its limits; None takes the default of the precision.

    Attributes:
        max_drop: points of top-1, on labelled pictures.
        min_agreement_percent: of first classes with the float graph.
        max_kl: mean Kullback-Leibler divergence from the float graph's probabilities, in nats.
        or_float: publish the float graph if the gate fails.
        names: of the limits, for messages.
    """

    precision: Literal["int8", "fp16"]
    max_drop: float | None = None
    min_agreement_percent: float | None = None
    max_kl: float | None = None
    or_float: bool = False
    names: LimitNames = FLAGS

    def limits(self, *, bundled: bool) -> Limits:
        """Returns the limits in force for the bundled pictures or for others."""
        usual = _LIMITS[self.precision]
        agreement, kl = self.min_agreement_percent, self.max_kl
        usual_kl = usual.max_kl * (_BUNDLED_KL_FACTOR if bundled else 1)
        return Limits(
            usual.max_drop if self.max_drop is None else self.max_drop,
            usual.min_agreement_percent if agreement is None else agreement,
            usual_kl if kl is None else kl,
        )


@dataclass(frozen=True, slots=True)
class PrecisionReference:
    """The float graph's probabilities for the gate's N pictures."""

    pictures: Iterable[Picture]  # the same on every pass
    answers: NDArray[np.float32]  # (N, C)
    indexes: NDArray[np.int64] | None = None  # (N,), the classes, UNKNOWN for some; None for all
    prepare: ReadInput = read_input
    bundled: bool = False  # crops of scikit-image's photographs
    activation: Activation = "softmax"


@dataclass(frozen=True, slots=True)
class PrecisionLoss:
    """The loss of a graph of lower precision against the float graph."""

    found: AnswerComparison  # over all pictures
    agreement: Measured  # over those that count
    n_counted: int
    activation: Activation

    @property
    def drop_percent(self) -> float | None:
        """Points of top-1; None without labels."""
        return None if self.found.drop is None else round(self.found.drop.value, 3)

    @property
    def agreement_percent(self) -> float:
        """Of first classes, or of the labels with sigmoid."""
        return round(self.agreement.value, 3)

    @property
    def max_difference(self) -> float:
        """Of a probability."""
        return self.found.max_difference

    def to_manifest(self) -> FloatComparison:
        drop = self.found.drop
        return FloatComparison(
            n_images=self.found.n,
            agreement_percent=_rounded(self.agreement, 3),
            mean_kl=_rounded(self.found.kl, 6),
            drop_percent=None if drop is None else _rounded(drop, 3),
        )

    def __str__(self) -> str:
        found, drop = self.found, self.found.drop
        change = ""
        if drop is not None:
            bounds = f"({0 - drop.high:+.2f} to {0 - drop.low:+.2f})"
            change = f", top-1 {0 - drop.value:+.2f} points {bounds} on {found.n_labelled}"
        return (
            f"same {OUTCOMES[self.activation]} as float in {_agreement(self.agreement)} of {self.n_counted} pictures, "
            f"mean KL {_kl(found.kl)} on {found.n}{change}"
        )


def _rounded(one: Measured, digits: int) -> Measured:
    low, value, high = (round(number, digits) + 0.0 for number in (one.low, one.value, one.high))
    return Measured(value=value, low=low, high=high)


def held_out_pictures() -> list[Picture]:
    """Returns bundled pictures that no calibration has seen, though from the same photographs."""
    return list(picture_files(read_photographs(), _N_HELD_OUT, seed=_HELD_OUT_SEED))


def pass_gate(
    answers: NDArray[np.float32], reference: PrecisionReference, target: LowerPrecision
) -> PrecisionLoss:
    """Returns a graph's loss if its target allows it.

    Args:
        answers: the graph's probabilities for the reference's pictures, float32, shape (N, C).
        reference: the float graph's.
        target: the limits.

    Raises:
        PrecisionFailed: of the target's kind; the loss is too large, or no picture is decided.
    """
    counted = decided(reference)
    if not counted.any():
        raise _FAILURES[target.precision](
            "the float graph is undecided on every bundled picture; pass pictures of its own classes "
            "with --evaluate"
        )

    if reference.activation == "sigmoid" and not given(reference.answers).any():
        # Where nothing is found, a graph that never finds anything would agree.
        raise _FAILURES[target.precision](
            "the float graph finds no label in any of the pictures; pass pictures of its labels with "
            "--calibration"
        )

    activation = reference.activation
    found = compare(reference.answers, answers, reference.indexes, activation)
    agreement = found.agreement
    if not counted.all():
        agreement = compare(reference.answers[counted], answers[counted]).agreement
    loss = PrecisionLoss(found, agreement, int(counted.sum()), activation)
    log.info("%s: %s", target.precision, loss)

    reasons = _reasons(loss, target.limits(bundled=reference.bundled), target.names)
    if reasons:
        raise _FAILURES[target.precision](
            f"{target.precision} differs too much from float: {'; '.join(reasons)}. "
            f"{_ways_out(target)}"
        )
    return loss


def decided(reference: PrecisionReference) -> NDArray[np.bool_]:
    """Returns which pictures count for the agreement, bool, shape (N,).

    All do, but of the bundled ones only those on which the float graph is decided.
    """
    if not reference.bundled or reference.answers.shape[1] == 1:
        return np.ones(len(reference.answers), dtype=np.bool_)
    second, first = np.sort(reference.answers, axis=1)[:, -2:].T  # (N,) each
    found: NDArray[np.bool_] = first - second >= _DECIDED_LEAD
    return found


def _reasons(loss: PrecisionLoss, limits: Limits, names: LimitNames) -> list[str]:
    found, drop = loss.found, loss.found.drop
    reasons = []
    if loss.agreement.high < limits.min_agreement_percent:
        reasons.append(
            f"same {OUTCOMES[loss.activation]} in {_agreement(loss.agreement)} of {loss.n_counted} pictures, with 95% "
            f"confidence below {limits.min_agreement_percent:g}% ({names.min_agreement})"
        )
    if drop is not None and drop.low > limits.max_drop:
        reasons.append(
            f"{drop.value:.2f} ({drop.low:.2f} to {drop.high:.2f}) points of top-1 lost on "
            f"{found.n_labelled} pictures, with 95% confidence more than {limits.max_drop:g} "
            f"({names.max_drop})"
        )
    if found.kl.value > limits.max_kl:
        reasons.append(
            f"mean KL {_kl(found.kl)} on {found.n} pictures, above {limits.max_kl:g} ({names.max_kl})"
        )
    return reasons


def _ways_out(target: LowerPrecision) -> str:
    names = target.names
    ways = [names.more_pictures]
    if target.precision == "int8":
        ways.append(names.fp16)
    if names.or_float is not None and not target.or_float:
        ways.append(names.or_float)
    return f"You can {', '.join(ways)}, or change the limit"


def _agreement(one: Measured) -> str:
    return f"{one.value:.2f}% ({one.low:.2f} to {one.high:.2f})"


def _kl(one: Measured) -> str:
    return f"{one.value:.3g} ({one.low:.3g} to {one.high:.3g})"
