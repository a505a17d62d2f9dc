"""Errors of training, each one line a user can act on.

TrainingError
├── InputRefused                  what was asked for or handed in cannot be used (exit code 2)
│   ├── ArchitectureRefused       unknown to timm, or preprocessing that cannot be reproduced
│   ├── WeightsRefused            a checkpoint that is unsafe, unreadable or of another network
│   ├── LabelsInvalid             a labels file that does not name every class exactly once
│   ├── PicturesMissing           a folder or package without usable pictures
│   ├── GraphRefused              a foreign ONNX file outside of what the service runs
│   ├── ConfigInvalid             a config with an unknown key or a value out of bounds
│   ├── DataRefused               pictures that cannot be trained on: empty classes, leaks, CSV
│   ├── CheckpointRefused         a run folder that belongs to another run, or is damaged
│   └── VersionExists             a published version would be overwritten
└── GateFailed                    the model was made but is not good enough (exit code 1)
    ├── ExportFailed              the graph is invalid or differs from the network
    ├── ParityFailed              from image bytes, graph and network disagree
    ├── PrecisionFailed           the graph of a lower precision
    │   ├── QuantizationFailed    ... in int8 loses too much
    │   └── HalfPrecisionFailed   ... in float16 loses too much, or overflows
    ├── LossNotFinite             training diverged; the message names the step
    ├── AccuracyTooLow            the network is worse than the config allows
    └── VersionUnproven           the finished version fails its own golden examples or digests

`training.system.signals` adds Interrupted and Terminated, by which a signal ends a run after a checkpoint.

Every class has a stable snake_case `code` and the exit code of the command.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar, Final

_MAX_CHARACTERS: Final = 200


class TrainingError(Exception):
    """Base of every error this package raises on purpose."""

    code: ClassVar[str]
    exit_code: ClassVar[int] = 1


class InputRefused(TrainingError):
    """What was asked for or handed in cannot be used."""

    code = "input_refused"
    exit_code = 2


class ArchitectureRefused(InputRefused):
    """timm does not know the architecture, or its preprocessing cannot be reproduced."""

    code = "architecture_refused"


class WeightsRefused(InputRefused):
    """The checkpoint is unsafe, unreadable or belongs to another network."""

    code = "weights_refused"


class LabelsInvalid(InputRefused):
    """The labels do not name every class exactly once."""

    code = "labels_invalid"


class PicturesMissing(InputRefused):
    """A folder or package holds no usable pictures."""

    code = "pictures_missing"


class GraphRefused(InputRefused):
    """A foreign ONNX file is outside of what the service runs."""

    code = "graph_refused"


class ConfigInvalid(InputRefused):
    """A config has an unknown key, a value out of bounds, or does not exist."""

    code = "config_invalid"


class DataRefused(InputRefused):
    """The pictures cannot be trained on: a class without pictures, leaks, an unreadable list."""

    code = "data_refused"


class CheckpointRefused(InputRefused):
    """The run folder belongs to another run, or its checkpoint is damaged."""

    code = "checkpoint_refused"


class VersionExists(InputRefused):
    """The version is published already and versions are immutable."""

    code = "version_exists"


class GateFailed(TrainingError):
    """The model was made but is not good enough to be published."""

    code = "gate_failed"


class ExportFailed(GateFailed):
    """The exported graph is invalid or differs from the network on the same pixels."""

    code = "export_failed"


class ParityFailed(GateFailed):
    """From image bytes, the graph and the network disagree."""

    code = "parity_failed"


class PrecisionFailed(GateFailed):
    """The graph of a lower precision cannot be made, or loses too much against the float graph."""

    code = "precision_failed"


class QuantizationFailed(PrecisionFailed):
    """The int8 graph loses too much against the float graph."""

    code = "quantization_failed"


class HalfPrecisionFailed(PrecisionFailed):
    """The float16 graph loses too much against the float graph, or overflows."""

    code = "half_precision_failed"


class LossNotFinite(GateFailed):
    """The loss stopped being a finite number."""

    code = "loss_not_finite"


class AccuracyTooLow(GateFailed):
    """The trained network is worse than the config allows."""

    code = "accuracy_too_low"


class VersionUnproven(GateFailed):
    """The finished version fails its own digests or golden examples."""

    code = "version_unproven"


def did_you_mean(word: str, known: Iterable[str], n: int = 3) -> str:
    """Returns the end of a message about an unknown word: the known ones that are like it."""
    near = difflib.get_close_matches(word, known, n=n)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def first_line(error: Exception) -> str:
    """Returns the first line of a foreign error's message, or its kind where it has none.

    Libraries explain themselves over pages; ours are one line each.
    """
    lines = str(error).strip().splitlines()
    return lines[0][:_MAX_CHARACTERS] if lines else type(error).__name__
