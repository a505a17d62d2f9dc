"""What an import is asked to do, in three small groups of settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a version goes and what it says about itself.

    Attributes:
        models_dir: the model repository.
        name: of the model.
        version: its number.
        replace: an existing version of that number may be replaced.
        license: SPDX identifier of the weights; None where the source knows it.
        command: the command line, without local folders.
    """

    models_dir: Path
    name: str
    version: int
    replace: bool = False
    license: str | None = None
    command: str | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """Which pictures prove the version.

    Attributes:
        golden_dir: candidates for golden examples.
        evaluate_dir: labelled pictures to measure accuracy on, or None.
        dataset: what those are, for the manifest; the folder's name if None.
        max_batch: the largest batch the version is tried with.
    """

    golden_dir: Path
    evaluate_dir: Path | None = None
    dataset: str | None = None
    max_batch: int = 32


@dataclass(frozen=True, slots=True)
class Int8:
    """How to quantize and what it may cost.

    Attributes:
        calibration_dir: pictures to calibrate on; None takes the free ones.
        n_calibration: how many.
        max_drop: points of top-1, judged where there are labelled pictures.
        min_agreement_percent: of first classes with the float graph, judged on free pictures
            otherwise.
        or_float: publish the float graph where the int8 one fails its gate.
        seed: of the calibration crops.
    """

    name: ClassVar[str] = "int8"
    calibration_dir: Path | None = None
    n_calibration: int = 512
    max_drop: float = 2.0
    min_agreement_percent: float = 80.0
    or_float: bool = False
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Fp16:
    """What a float16 graph may cost, judged with every result rounded to float16.

    Attributes:
        max_drop: points of top-1, judged where there are labelled pictures.
        min_agreement_percent: of first classes with the float graph, judged on free pictures
            otherwise.
        or_float: publish the float graph where the float16 one fails its gate.
    """

    name: ClassVar[str] = "fp16"
    max_drop: float = 0.2
    min_agreement_percent: float = 99.0
    or_float: bool = False


LowerPrecision = Int8 | Fp16
