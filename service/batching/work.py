"""The work on a batch, the same in a thread and in a child process: prepare, run, rank."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final, TypeVar

import numpy as np

from contract.images import ImageFile
from contract.manifest import Manifest
from contract.predictions import top_k
from contract.preprocessing import Tensor, decode_file, to_input
from service.batching.lane import BatchItem, BatchJob, Outcome, RowResult
from service.errors import DeadlineExceeded, EngineFailure, Overloaded, ServiceError
from service.models.engine import Batch

log = logging.getLogger(__name__)

Clock = Callable[[], float]
AnyItem = TypeVar("AnyItem", bound=BatchItem)

LARGE_PIXELS: Final = 4_000_000  # larger pictures take several times as long to decode


class Preparation:
    """Prepares one picture: from the file's bytes to one row of the graph's input.

    Attributes:
        file: the picture, of which only the header has been read.
        decode_s: seconds of decoding; 0 before.
        preprocess_s: seconds from pixels to the row; 0 before.
    """

    __slots__ = ("_clock", "_deadline_s", "_manifest", "decode_s", "file", "preprocess_s")

    def __init__(
        self,
        file: ImageFile,
        manifest: Manifest,
        deadline_s: float,
        clock: Clock = time.monotonic,
    ) -> None:
        self.file, self._manifest = file, manifest
        self._deadline_s, self._clock = deadline_s, clock
        self.decode_s = self.preprocess_s = 0.0

    def __call__(self) -> Tensor:
        """Returns the row, without the batch axis; on any thread.

        Raises:
            ImageError: the picture is not acceptable.
            DeadlineExceeded: the deadline has passed.
            Overloaded: there is not enough memory.
        """
        started_s = self._clock()
        if started_s >= self._deadline_s:
            raise DeadlineExceeded("the request's deadline passed before the picture was decoded")

        try:
            picture = decode_file(self.file, self._manifest.preprocessing)
            decoded_s = self._clock()
            row = to_input(picture, self._manifest)
        except MemoryError as error:
            raise Overloaded(
                "not enough memory to decode this picture now", reason="memory"
            ) from error

        self.decode_s, self.preprocess_s = decoded_s - started_s, self._clock() - decoded_s
        return row


def is_large(file: ImageFile) -> bool:
    return file.work_pixels > LARGE_PIXELS


def work_on(job: BatchJob[AnyItem], clock: Clock) -> None:
    """Prepares and runs a batch, and stores each picture's outcome in the job.

    A picture that cannot be prepared does not affect the others. A run that fails is retried picture
    by picture, so that only the one at fault fails.
    """
    started_s = job.started_s = clock()

    prepared: list[tuple[AnyItem, Batch]] = []
    for item in job.items:
        if not _is_live(item, job, clock):
            continue
        try:
            prepared.append((item, item.item() if callable(item.item) else item.item))
        except Exception as error:  # noqa: BLE001 - becomes this picture's answer
            if isinstance(error, StopIteration):  # a future does not take one
                error = RuntimeError("StopIteration")
            job.outcomes.append((item, error))

    if prepared:
        _run(job, prepared, started_s, clock)
    job.work_s = clock() - started_s


def _is_live(item: AnyItem, job: BatchJob[AnyItem], clock: Clock) -> bool:
    if not item.pending or job.run.interrupted:
        return False
    if clock() >= item.deadline_s:
        expired = DeadlineExceeded("the request's deadline passed before the picture was run")
        job.outcomes.append((item, expired))
        return False
    return True


def _run(
    job: BatchJob[AnyItem], prepared: list[tuple[AnyItem, Batch]], started_s: float, clock: Clock
) -> None:
    try:
        _run_once(job, prepared, started_s, clock)
    except Exception as error:
        if job.run.interrupted:
            return  # whoever interrupted the run has answered its pictures

        if len(prepared) > 1:
            log.warning(
                "a run failed; its pictures are retried one by one",
                extra={"pictures": len(prepared)},
            )
            for one in prepared:
                if _is_live(one[0], job, clock):
                    _run(job, [one], started_s, clock)
            return

        failure: ServiceError
        if isinstance(error, MemoryError):
            failure = Overloaded("not enough memory to run this picture now", reason="memory")
        else:
            log.exception("the engine failed on one picture")
            failure = EngineFailure("the model failed on this picture")
        failure.__cause__ = error
        job.outcomes.append((prepared[0][0], failure))


def _run_once(
    job: BatchJob[AnyItem], prepared: list[tuple[AnyItem, Batch]], started_s: float, clock: Clock
) -> None:
    size = len(prepared)
    # One picture needs no copy to become a batch.
    batch = prepared[0][1][None] if size == 1 else np.stack([row for _, row in prepared])

    began_s = job.started_s = clock()
    scores = job.version.engine.run(batch, job.run)  # (N, C)
    run_s = clock() - began_s

    if scores.ndim != 2 or len(scores) != size:
        raise EngineFailure(f"{size} pictures gave scores of shape {scores.shape}")
    job.runs.append((size, run_s))

    # A row that is not finite is the fault of its picture, not of the run.
    finite = np.atleast_1d(np.isfinite(scores).all(axis=1))
    for at, (item, _) in enumerate(prepared):
        outcome: Outcome
        if finite[at]:
            began_s = clock()
            ranking = top_k(scores[at], item.wanted.k, item.wanted.min_probability)
            queue_s = started_s - item.submitted_s
            outcome = RowResult(ranking, queue_s, run_s, size, clock() - began_s)
        else:
            outcome = EngineFailure(
                "the model gave a probability that is not a number for this picture"
            )
        job.outcomes.append((item, outcome))
