"""Takes a trained network through the gates.

The validation pictures fit the temperature and check parity. With the training pictures, they gate int8
or float16. The test pictures only measure the final graph and gate its accuracy.

Shapes: N pictures, C classes.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from contract.comparison import UNKNOWN
from contract.manifest import Calibration, Manifest, Preprocessing
from contract.preprocessing import read_input
from training.config.config import Publish, RunConfig
from training.data.batches import Batches, EvaluationTransform
from training.data.photographs import picture_files, read_photographs
from training.data.pictures import Picture, ReadInput
from training.data.prepared import PreparedPictures
from training.data.samples import DataSet, Sample, SamplePictures, read_each
from training.errors import AccuracyTooLow
from training.evaluation.calibrate import calibrate, fit_temperature
from training.evaluation.parity import reference_probabilities, without_transparency
from training.evaluation.reference import InputRecorder
from training.evaluation.scorer import Scorer, accuracy
from training.export import describe as graphs
from training.export.draft import Draft
from training.export.gate import CONFIG_KEYS, LowerPrecision, PrecisionReference
from training.export.int8 import CalibrationRows
from training.export.layers import with_layers
from training.export.weights.choose import N_PICTURES
from training.networks.architectures import normalise
from training.release import gates
from training.release.golden import choose_surest
from training.release.publish import Destination
from training.release.replacement import AnsweredPictures

log = logging.getLogger(__name__)

UNSTATED_LICENSE: Final = "NOASSERTION"  # SPDX, for "no licence is stated"

_N_PARITY: Final = 300  # pictures, at most
_BATCH: Final = 32
_N_COMPARED: Final = 10_000  # pictures, at most, that a lower precision is gated on


@dataclass(frozen=True, slots=True)
class TrainedNetwork:
    """A trained network and what it was trained on."""

    network: nn.Module  # in evaluation mode, normalised pixels to logits
    spec: Preprocessing
    data: DataSet
    config: RunConfig
    weights_source: str  # what the run started from
    prepared: PreparedPictures = field(default_factory=PreparedPictures)


@dataclass(frozen=True, slots=True)
class SplitPredictions:
    """The final graph's predictions for a split, from image bytes.

    Attributes:
        probabilities: float32, shape (N, C).
        logits: float32, shape (N, C), before the temperature.
        indexes: int64, shape (N,): the true classes.
    """

    probabilities: NDArray[np.float32]
    logits: NDArray[np.float32]
    indexes: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class CandidateVersion:
    """A version that has passed every gate, but is not published yet.

    `data` lacks pictures that became unreadable since the data check. `validation` and `test` are
    in its order.
    """

    manifest: Manifest
    files: gates.Files
    data: DataSet
    validation: SplitPredictions
    test: SplitPredictions

    @property
    def graph(self) -> bytes:
        return self.files[graphs.GRAPH_FILE]


def gate_network(finished: TrainedNetwork, to: Destination) -> CandidateVersion:
    """Exports a trained network and runs it through the gates.

    Raises:
        GateFailed: names the gate and by how much the model misses it.
    """
    network, spec, config = finished.network, finished.spec, finished.config
    plain = EvaluationTransform(spec, finished.prepared)
    data = _still_readable(finished.data, plain)

    temperature = _temperature(network, plain, data.validation)
    exported = gates.export_checked(
        network, spec, max_batch=config.publish.max_batch, temperature=temperature
    )
    draft = Draft(
        name=to.name,
        version=to.version,
        architecture=config.network.architecture,
        model=exported.model,
        graph=exported.graph,
        preprocessing=spec,
        labels=data.labels,
        license=to.license or data.license or UNSTATED_LICENSE,
        weights_source=finished.weights_source,
        command=to.command,
        config_sha256=config.sha256,
        seed=config.seed,
        calibration=Calibration(temperature=temperature),
        classifier=exported.classifier,
        files=exported.files,
    )

    draft = with_layers(draft) if to.layers else draft
    splits = SplitEvidence(data, config, finished.prepared)
    reference = _reference(network, data.validation, temperature)
    manifest, files = gates.run_gates(draft, reference, splits, _precision(config.publish), to)
    return CandidateVersion(manifest, files, data, splits.validation, splits.test)


class SplitEvidence:
    """`Evidence` from the splits of a dataset; `measured` sets `validation` and `test`."""

    validation: SplitPredictions
    test: SplitPredictions

    def __init__(self, data: DataSet, config: RunConfig, prepared: PreparedPictures) -> None:
        self.data, self.config, self.prepared = data, config, prepared
        self.max_batch = config.publish.max_batch

    def precision_reference(self, draft: Draft) -> PrecisionReference:
        # The validation pictures first, which alone have labels that the network has not seen.
        held_out = self.data.validation
        room = max(_N_COMPARED - len(held_out), 0)
        # Not the ones that int8 weights are fitted to: their divergence reads low.
        seen = self._shuffled_training()[N_PICTURES:][:room]
        seen = [
            sample for sample, _ in read_each(seen, lambda data: self.prepared.row(data, draft))
        ]

        answers = self._answer(draft, [*held_out, *seen], self.prepared.row)
        indexes = answers.indexes.copy()
        indexes[len(held_out) :] = UNKNOWN
        pictures = SamplePictures([*held_out, *seen])
        return PrecisionReference(
            pictures, answers.probabilities, indexes, prepare=self.prepared.row
        )

    def calibration(self, draft: Draft) -> CalibrationRows:
        chosen = self._shuffled_training()[: self.config.publish.calibration_images]
        rows = [row for _, row in read_each(chosen, lambda data: read_input(data, draft))]
        return CalibrationRows(rows, f"training pictures of {self.data.name}")

    def measured(self, draft: Draft) -> tuple[Draft, AnsweredPictures]:
        recorder = InputRecorder(self.prepared.row)
        validation = self._answer(draft, self.data.validation, self.prepared.row)
        test = self._answer(draft, self.data.test, recorder)
        self.validation, self.test = validation, test

        metrics = accuracy(test.probabilities, test.indexes, f"{self.data.name}, test split")
        log.info(
            "accuracy: top-1 %.2f%% (standard error %.2f) on %d test pictures",
            metrics.top1_percent,
            metrics.standard_error,
            metrics.n_images,
        )
        least = self.config.publish.min_top1_percent
        if metrics.top1_percent < least:
            raise AccuracyTooLow(
                f"test top-1 is {metrics.top1_percent:.2f}%, below publish.min_top1_percent = "
                f"{least:g}; nothing is published"
            )

        calibration = calibrate(
            (validation.logits, validation.indexes),
            (test.logits, test.indexes),
            draft.calibration.temperature,
        )
        reference = recorder.reference(test.probabilities, metrics.dataset)
        tested = AnsweredPictures(
            SamplePictures(self.data.test), test.probabilities, test.indexes, self.prepared.row
        )
        return replace(draft, metrics=metrics, calibration=calibration, reference=reference), tested

    @property
    def golden_known(self) -> bool:
        return True

    def golden(self) -> list[Picture]:
        return choose_surest(
            self.data.test,
            self.data.labels,
            self.test.probabilities,
            self.config.publish.golden_images,
        )

    def _shuffled_training(self) -> list[Sample]:
        # Shuffled, so that all classes are among the first.
        samples = list(self.data.train)
        random.Random(self.config.seed).shuffle(samples)  # noqa: S311 # nothing is kept secret
        return samples

    def _answer(
        self, draft: Draft, samples: Sequence[Sample], prepare: ReadInput
    ) -> SplitPredictions:
        indexes = np.array([sample.index for sample in samples], dtype=np.int64)
        scorer = Scorer(draft.model, draft, prepare=prepare)
        return SplitPredictions(*scorer.probabilities_and_logits(SamplePictures(samples)), indexes)


def _still_readable(data: DataSet, plain: EvaluationTransform) -> DataSet:
    # Files may change or vanish during hours of training.
    validation, test = (
        tuple(sample for sample, _ in read_each(samples, plain))
        for samples in (data.validation, data.test)
    )
    return replace(data, validation=validation, test=test)


def _temperature(
    network: nn.Module, plain: EvaluationTransform, samples: Sequence[Sample]
) -> float:
    batches = Batches(samples, plain, batch_size=_BATCH).epoch(0)
    with torch.inference_mode():
        parts = [(network(normalise(batch.images, plain.spec)), batch.indexes) for batch in batches]
    logits, indexes = (torch.cat(column).numpy() for column in zip(*parts, strict=True))
    temperature = fit_temperature(logits, indexes)
    log.info("calibration: temperature %.3f on %d validation pictures", temperature, len(indexes))
    return temperature


def _reference(
    network: nn.Module, samples: Sequence[Sample], temperature: float
) -> gates.NetworkReference:
    every = math.ceil(len(samples) / _N_PARITY)  # spread over all classes: samples may be sorted
    found = without_transparency(list(SamplePictures(samples[::every])))
    # scikit-image's photographs if every validation picture has transparency.
    pictures = found or list(picture_files(read_photographs(), 64, seed=0))
    return gates.NetworkReference(pictures, reference_probabilities(network, pictures, temperature))


def _precision(publish: Publish) -> LowerPrecision | None:
    if publish.precision == "fp32":
        return None
    return LowerPrecision(
        publish.precision,
        max_drop=publish.max_drop,
        min_agreement_percent=publish.min_agreement_percent,
        max_kl=publish.max_kl,
        or_float=True,
        names=CONFIG_KEYS,
    )
