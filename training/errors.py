"""The errors of training. Each message is one line that a user can act on.

TrainingError
├── InputRefused                  an option or an input file cannot be used (exit code 2)
│   ├── ArchitectureRefused       unknown to timm, or its preprocessing cannot be reproduced
│   ├── WeightsRefused            an unsafe or unreadable checkpoint, or one of another network
│   ├── LabelsInvalid             the labels file does not name every class exactly once
│   ├── PicturesMissing           a folder or package has no usable pictures
│   ├── GraphRefused              the service cannot run this ONNX file
│   ├── ConfigInvalid             a config has an unknown key or a value out of bounds
│   ├── DataRefused               the data cannot be trained on: empty class, leaks, bad CSV
│   ├── CheckpointRefused         the run folder is damaged or belongs to another run
│   └── VersionExists             the version is already published
└── GateFailed                    the model is not good enough to publish (exit code 1)
    ├── ExportFailed              the graph is invalid or differs from the network
    ├── ParityFailed              the graph and the network disagree on the same files
    ├── PrecisionFailed           the int8 or float16 graph fails its gate
    │   ├── QuantizationFailed    int8 loses too much accuracy
    │   └── HalfPrecisionFailed   float16 loses too much accuracy, or overflows
    ├── LossNotFinite             training diverged; the message names the step
    ├── AccuracyTooLow            accuracy is below what the config requires
    ├── VersionWorse              the version it would replace is more accurate
    ├── LabelsChanged             the version it would replace has labels that it lacks
    └── VersionUnproven           the finished version fails its golden examples or digests

`training.system.signals` adds Interrupted and Terminated, raised when a signal ends a run after a
checkpoint.

Each class has a stable snake_case `code` and the exit code of the command.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar, Final

_MAX_CHARACTERS: Final = 200  # of a message from another library


class TrainingError(Exception):
    """Base class; anything else that leaves this package is a bug."""

    code: ClassVar[str]
    exit_code: ClassVar[int] = 1


class InputRefused(TrainingError):
    """An option or an input file cannot be used."""

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
    """The service cannot run this ONNX file."""

    code = "graph_refused"


class ConfigInvalid(InputRefused):
    """A config has an unknown key, a value out of bounds, or does not exist."""

    code = "config_invalid"


class DataRefused(InputRefused):
    """The data cannot be trained on: a class has no pictures, splits leak, or the CSV is bad."""

    code = "data_refused"


class CheckpointRefused(InputRefused):
    """The run folder belongs to another run, or its checkpoint is damaged."""

    code = "checkpoint_refused"


class VersionExists(InputRefused):
    """The version is already published, and `--replace` was not given."""

    code = "version_exists"


class GateFailed(TrainingError):
    """The model is not good enough to publish."""

    code = "gate_failed"


class ExportFailed(GateFailed):
    """The exported graph is invalid or differs from the network on the same pixels."""

    code = "export_failed"


class ParityFailed(GateFailed):
    """The graph and the network disagree on the same image files."""

    code = "parity_failed"


class PrecisionFailed(GateFailed):
    """A lower-precision graph cannot be made, or loses too much accuracy."""

    code = "precision_failed"


class QuantizationFailed(PrecisionFailed):
    """The int8 graph loses too much accuracy compared with the float graph."""

    code = "quantization_failed"


class HalfPrecisionFailed(PrecisionFailed):
    """The float16 graph loses too much accuracy, or overflows."""

    code = "half_precision_failed"


class LossNotFinite(GateFailed):
    """Training diverged; the message names the step."""

    code = "loss_not_finite"


class AccuracyTooLow(GateFailed):
    """The accuracy is below `publish.min_top1_percent`."""

    code = "accuracy_too_low"


class VersionWorse(GateFailed):
    """The version that it would replace is more accurate, and `--allow-worse` was not given."""

    code = "version_worse"


class LabelsChanged(GateFailed):
    """The version that it would replace has labels that it lacks."""

    code = "labels_changed"


class VersionUnproven(GateFailed):
    """The finished version fails its digests or its golden examples."""

    code = "version_unproven"


def did_you_mean(word: str, known: Iterable[str], n: int = 3) -> str:
    """Returns "; did you mean ...?" for an error message, or "" if no known word is similar."""
    near = difflib.get_close_matches(word, known, n=n)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def first_line(error: Exception) -> str:
    """Returns the first line of another library's error message, or the error's class name."""
    lines = str(error).strip().splitlines()
    return lines[0][:_MAX_CHARACTERS] if lines else type(error).__name__
