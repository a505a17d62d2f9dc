"""What an epoch's validation says: top-1, the NLL, and the NLL at its best temperature.

The last one chooses the epoch that is kept. Label smoothing makes a network less sure than it should be,
and the more it learns, the more that costs in plain NLL. The published graph divides its logits by a
fitted temperature, so only the NLL after that division counts.

Shapes: N pictures, C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.evaluation.calibrate import fit_temperature, nll_at
from training.learning.history import Metric

_BISECTIONS: Final = 20  # of a range of 6 in log(T): within 6e-6


@dataclass(frozen=True, slots=True)
class ValidationScore:
    """The validation results of one epoch."""

    top1: float  # 0..1
    nll: float  # mean negative log-likelihood, natural logarithm; not finite if a logit is not
    nll_calibrated: float  # at the temperature below
    temperature: float  # that lowers the NLL most

    def reason(self, metric: Metric) -> str:
        """Returns what made this epoch the best, for the log."""
        top1 = f"top-1 {100 * self.top1:.2f}%"
        nll = f"NLL {self.nll_calibrated:.4f} at its best temperature {self.temperature:.2f}"
        if metric == "top1":
            return f"highest validation {top1}; {nll}"
        return f"lowest validation {nll}; {top1}"


def score_validation(logits: NDArray[np.float32], indexes: NDArray[np.int64]) -> ValidationScore:
    """Measures the logits of all validation pictures, shape (N, C), N > 0."""
    if not np.isfinite(logits).all():
        return ValidationScore(0.0, math.nan, math.nan, 1.0)
    temperature = fit_temperature(logits, indexes, bisections=_BISECTIONS)
    return ValidationScore(
        top1=float((logits.argmax(axis=1) == indexes).mean()),
        nll=nll_at(logits, indexes, 1.0),
        nll_calibrated=nll_at(logits, indexes, temperature),
        temperature=temperature,
    )
