"""Pictures for the gates of an import: the user's folders, or else scikit-image's photographs."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from contract.preprocessing import to_input
from training.data.photographs import SOURCE, read_photographs, varied_crops
from training.data.pictures import Picture, example_pictures, input_rows, scan_labelled, scan_plain
from training.errors import PicturesMissing
from training.evaluation.reference import InputRecorder
from training.evaluation.scorer import Scorer, accuracy, answer_labelled
from training.export.draft import Draft
from training.export.gate import PrecisionReference, held_out_pictures
from training.export.int8 import CalibrationRows
from training.export.weights.choose import N_PICTURES
from training.release.replacement import AnsweredPictures

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FolderEvidence:
    """`Evidence` for an import, from the flags of the command."""

    golden_dir: Path | None = None  # None: the example pictures
    evaluate_dir: Path | None = None
    dataset: str | None = None  # None: the name of evaluate_dir
    max_batch: int = 32
    calibration_dir: Path | None = None  # None: scikit-image's photographs
    n_calibration: int = 512
    seed: int = 0  # of the crops of scikit-image's photographs

    def precision_reference(self, draft: Draft) -> PrecisionReference:
        scorer = Scorer(draft.model, draft)
        if self.evaluate_dir is not None:
            folder = scan_labelled(self.evaluate_dir, draft.labels)
            return PrecisionReference(folder, *answer_labelled(scorer, folder))

        if self.calibration_dir is not None:
            # Not the ones that int8 weights are fitted to, unless there are no others.
            folder = scan_plain(self.calibration_dir).after(N_PICTURES)
            answers = scorer.probabilities(folder)
            return PrecisionReference(folder, answers, activation=draft.activation)

        pictures = held_out_pictures()
        return PrecisionReference(pictures, scorer.probabilities(pictures), bundled=True)

    def calibration(self, draft: Draft) -> CalibrationRows:
        if self.calibration_dir is None:
            return CalibrationRows(self._photograph_rows(draft), f"{SOURCE}, seed {self.seed}")

        folder = scan_plain(self.calibration_dir)
        rows = input_rows(islice(folder, self.n_calibration), draft)
        if not rows:
            raise PicturesMissing(
                f"--calibration {self.calibration_dir.name}: no readable pictures"
            )
        return CalibrationRows(rows, f"pictures of the folder {self.calibration_dir.name}")

    def measured(self, draft: Draft) -> tuple[Draft, AnsweredPictures | None]:
        if draft.quantization is not None:
            draft = replace(draft, seed=self.seed)
        if self.evaluate_dir is None:
            return draft, None

        folder = scan_labelled(self.evaluate_dir, draft.labels)
        recorder = InputRecorder()
        answers, indexes = answer_labelled(Scorer(draft.model, draft, prepare=recorder), folder)
        dataset = self.dataset or f"the folder {self.evaluate_dir.name}"
        metrics = accuracy(answers, indexes, dataset)
        log.info(
            "accuracy: top-1 %.2f%%, top-5 %.2f%%, %s",
            metrics.top1_percent,
            metrics.top5_percent,
            folder,
        )
        draft = replace(draft, metrics=metrics, reference=recorder.reference(answers, dataset))
        return draft, AnsweredPictures(folder, answers, indexes)

    def golden(self) -> list[Picture]:
        pictures = list(scan_plain(self.golden_dir or example_pictures()))
        if self.golden_dir is not None and not pictures:
            raise PicturesMissing(f"--golden {self.golden_dir.name}: no readable pictures")
        return pictures

    @property
    def golden_known(self) -> bool:
        return self.golden_dir is not None

    def _photograph_rows(self, draft: Draft) -> list[NDArray[Any]]:
        # The crops already have the size of the input, so they skip the resize.
        spec = draft.preprocessing
        unresized = spec.model_copy(update={"resize_size_px": spec.crop_size_px})
        model = replace(draft, preprocessing=unresized)
        crops = varied_crops(
            read_photographs(), self.n_calibration, spec.crop_size_px, seed=self.seed
        )
        return [to_input(crop, model) for crop in crops]
