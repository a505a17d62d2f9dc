"""From a trained network to a published version.

The order of the gates: temperature on the validation pictures, export, parity, int8 or float16
judged on the validation pictures, accuracy and calibration of the very graph that is published on
both splits from image bytes, golden examples, one rename. The test pictures decide nothing but
whether the accuracy is enough.

Shapes: N pictures, C classes.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from contract.manifest import Calibration, Manifest, Preprocessing, Provenance
from contract.preprocessing import reference_input
from training.config.config import Publish, RunConfig
from training.data.batches import Batches, Plain
from training.data.photographs import picture_files, read_photographs
from training.data.pictures import input_rows
from training.data.samples import DataSet, Sample, SamplePictures, readable
from training.errors import AccuracyTooLow
from training.evaluation.calibrate import calibrate, fit_temperature
from training.evaluation.parity import reference_probabilities, without_transparency
from training.evaluation.scorer import Scorer, accuracy
from training.export import describe as graphs
from training.export.gate import Judgement
from training.export.int8 import CalibrationRows
from training.export.lower import lower
from training.export.plan import Destination, Fp16, Int8, LowerPrecision
from training.networks.architectures import normalise
from training.release.gates import Reference, assemble, export_checked, note_parity, prove_parity
from training.release.golden_choice import choose_surest
from training.release.publish import draft_manifest, publish
from training.system.environment import installed_versions

log = logging.getLogger(__name__)

UNSTATED_LICENSE: Final = "NOASSERTION"
"""SPDX's word for "nothing is said", for pictures whose terms the user did not give."""

_N_PARITY: Final = 300
_BATCH: Final = 32
_MAX_DROP_INT8: Final = 1.0  # less than for an import, whose network may be worse to quantize


@dataclass(frozen=True, slots=True)
class Finished:
    """A trained network and what it was trained on.

    Attributes:
        network: in evaluation mode, normalised pixels to logits.
        spec: its preprocessing.
        data: the pictures.
        config: of the run.
        weights_source: where the run started, for the manifest.
    """

    network: nn.Module
    spec: Preprocessing
    data: DataSet
    config: RunConfig
    weights_source: str


@dataclass(frozen=True, slots=True)
class Answers:
    """What the published graph answers to a split, from image bytes.

    Attributes:
        probabilities: float32, shape (N, C).
        logits: float32, shape (N, C), before the temperature.
        indexes: int64, shape (N,): the class each picture shows.
    """

    probabilities: NDArray[np.float32]
    logits: NDArray[np.float32]
    indexes: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Proven:
    """A version that has passed every gate but the last proof, which publishing makes.

    Attributes:
        manifest: complete.
        files: the content of every file it lists.
        data: the pictures it was proven with, those left out that broke meanwhile.
        validation: answers of its graph, in the order of `data`.
        test: likewise.
    """

    manifest: Manifest
    files: dict[str, bytes]
    data: DataSet
    validation: Answers
    test: Answers

    @property
    def graph(self) -> bytes:
        """The ONNX file."""
        return self.files[graphs.GRAPH_FILE]


def prove(finished: Finished, to: Destination) -> Proven:
    """Takes a trained network through the gates.

    Args:
        finished: the network, its data and its config.
        to: name and number of the version.

    Raises:
        GateFailed: which gate, and by how much.
    """
    finished = replace(finished, data=_still_readable(finished.data))
    data, plan = finished.data, finished.config.publish
    temperature = _temperature(finished)
    graph = export_checked(
        finished.network,
        finished.spec,
        max_batch=plan.max_batch,
        temperature=temperature,
    )
    draft = draft_manifest(
        to,
        finished.config.network.architecture,
        graph=graphs.describe_export(graph),
        preprocessing=finished.spec,
        labels=data.labels,
    ).model_copy(update={"calibration": Calibration(temperature=temperature)})
    reference = _reference(finished, temperature)
    draft = prove_parity(graph, draft, reference)
    graph, draft = _lowered(graph, draft, finished)
    if draft.precision != "fp32":
        draft = note_parity(Scorer(graph, draft, prepare=reference_input), reference)
    validation, test = (answer(graph, draft, samples) for samples in (data.validation, data.test))
    draft = _with_evidence(draft, finished, to, validation, test)
    _check_accuracy(draft, plan)
    manifest, files = assemble(
        graph,
        draft,
        choose_surest(data.test, data.labels, test.probabilities, plan.golden_images),
        max_batch=plan.max_batch,
    )
    return Proven(manifest, files, data, validation, test)


def release(proven: Proven, to: Destination) -> Path:
    """Publishes a proven version by one rename and returns its folder.

    Raises:
        VersionExists: the version is there already.
        VersionUnproven: read back, it is not what it should be.
    """
    manifest = proven.manifest
    folder = publish(to.models_dir, manifest, proven.files, replace=to.replace)
    log.info("published %s/%d (%.1f MB)", manifest.name, manifest.version, len(proven.graph) / 1e6)
    return folder


def answer(graph: bytes, draft: Manifest, samples: Sequence[Sample]) -> Answers:
    """Lets a graph answer labelled pictures from their bytes."""
    indexes = np.array([sample.index for sample in samples], dtype=np.int64)
    return Answers(*Scorer(graph, draft).probabilities_and_logits(SamplePictures(samples)), indexes)


def _still_readable(data: DataSet) -> DataSet:
    """Leaves out validation and test pictures that broke or vanished since they were checked."""
    return replace(data, validation=readable(data.validation), test=readable(data.test))


def _temperature(finished: Finished) -> float:
    """Fits the temperature on the network's own answers to the validation pictures."""
    spec = finished.spec
    batches = Batches(finished.data.validation, Plain(spec), batch_size=_BATCH).epoch(0)
    with torch.inference_mode():
        parts = [
            (finished.network(normalise(batch.images, spec)), batch.indexes) for batch in batches
        ]
    logits, indexes = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
    temperature = fit_temperature(logits, indexes)
    log.info("calibration: temperature %.3f on %d validation pictures", temperature, len(indexes))
    return temperature


def _reference(finished: Finished, temperature: float) -> Reference:
    """Lets the network answer opaque validation pictures, or free ones where there are none."""
    validation = finished.data.validation
    every = math.ceil(len(validation) / _N_PARITY)  # of all classes, whatever their order
    found = without_transparency(list(SamplePictures(validation[::every])))
    pictures = found or list(picture_files(read_photographs(), 64, seed=0))
    expected = reference_probabilities(finished.network, pictures, temperature)
    return Reference(pictures, expected, finished.config.publish.max_batch)


def _lowered(graph: bytes, draft: Manifest, finished: Finished) -> tuple[bytes, Manifest]:
    """Returns the graph of the precision asked for, or the float one where it loses too much."""
    data, plan = finished.data, _precision(finished.config.publish)
    if plan is None:
        return graph, draft
    answers = answer(graph, draft, data.validation)
    return lower(
        graph,
        draft,
        plan=plan,
        judgement=Judgement(
            SamplePictures(data.validation), answers.probabilities, answers.indexes
        ),
        calibration=lambda _: _calibration_rows(draft, finished),
    )


def _precision(publish: Publish) -> LowerPrecision | None:
    drop = publish.max_drop
    if publish.precision == "int8":
        return Int8(max_drop=_MAX_DROP_INT8 if drop is None else drop, or_float=True)
    if publish.precision == "fp16":
        return Fp16(or_float=True) if drop is None else Fp16(max_drop=drop, or_float=True)
    return None


def _calibration_rows(draft: Manifest, finished: Finished) -> CalibrationRows:
    """Takes training pictures, of all classes by chance."""
    chosen = list(finished.data.train)
    random.Random(finished.config.seed).shuffle(chosen)  # noqa: S311 # nothing is kept secret
    seen = readable(chosen[: finished.config.publish.calibration_images])
    rows = input_rows(SamplePictures(seen), draft)
    return CalibrationRows(rows, f"training pictures of {finished.data.name}")


def _with_evidence(
    draft: Manifest, finished: Finished, to: Destination, validation: Answers, test: Answers
) -> Manifest:
    """Adds accuracy, calibration and origin."""
    data, config = finished.data, finished.config
    dataset = f"{data.name}, test split"
    calibration = calibrate(
        (validation.logits, validation.indexes),
        (test.logits, test.indexes),
        draft.calibration.temperature,
    )
    provenance = Provenance(
        license=to.license or data.license or UNSTATED_LICENSE,
        weights_source=finished.weights_source,
        command=to.command,
        config_sha256=config.sha256,
        seed=config.seed,
        versions=installed_versions(),
    )
    return draft.model_copy(
        update={
            "metrics": accuracy(test.probabilities, test.indexes, dataset),
            "calibration": calibration,
            "provenance": provenance,
        }
    )


def _check_accuracy(draft: Manifest, plan: Publish) -> None:
    metrics = draft.metrics
    if metrics is None:
        raise AccuracyTooLow("the accuracy was not measured")
    log.info(
        "accuracy: top-1 %.2f %% (standard error %.2f) on %d test pictures, from their bytes",
        metrics.top1_percent,
        metrics.standard_error,
        metrics.n_images,
    )
    if metrics.top1_percent < plan.min_top1_percent:
        raise AccuracyTooLow(
            f"top-1 is {metrics.top1_percent:.2f} %, publish.min_top1_percent asks for "
            f"{plan.min_top1_percent:g}; nothing is published"
        )
