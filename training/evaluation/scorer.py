"""Runs an ONNX file on image bytes, through the same functions as the service.

Shapes: N pictures, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract.manifest import Interface, Metrics
from contract.predictions import to_probabilities
from contract.preprocessing import read_input
from training.data.pictures import Picture, ReadInput
from training.errors import GateFailed, GraphRefused, PicturesMissing
from training.evaluation.measures import top_k_accuracy
from training.evaluation.session import BATCH_SIZE, SessionPlan, open_session, run_outputs

_CHUNK: Final = 64  # pictures prepared at once, so that memory does not grow with the folder


class Scorer:
    """Returns a graph's probabilities for pictures.

    Args:
        graph: the ONNX file.
        manifest: its preprocessing, outputs and calibration.
        plan: threads and optimisation of the runtime.
        prepare: turns a file into an input row. The default is what the service does; the reference
            is for comparisons with another machine or with torch.
    """

    def __init__(
        self,
        graph: bytes,
        manifest: Interface,
        plan: SessionPlan | None = None,
        prepare: ReadInput = read_input,
    ) -> None:
        self.manifest = manifest
        self._prepare = prepare
        self._session = open_session(graph, plan)

    def probabilities(
        self, pictures: Iterable[Picture], batch_size: int = BATCH_SIZE
    ) -> NDArray[np.float32]:
        """Returns float32, shape (N, C), a row for each picture, in order.

        A graph with a fixed batch of 1 ignores `batch_size`.

        Raises:
            PicturesMissing: there are none.
            GateFailed: a value is not finite.
        """
        return self.probabilities_of_rows(self._rows(pictures), batch_size)

    def probabilities_of_rows(
        self, rows: Iterable[NDArray[Any]], batch_size: int = BATCH_SIZE
    ) -> NDArray[np.float32]:
        """Does what `probabilities` does, for input rows that are prepared already."""
        (scores,) = self._run(rows, [self.manifest.graph.scores.name], batch_size)
        return to_probabilities(scores, self.manifest)

    def probabilities_and_logits(
        self, pictures: Iterable[Picture]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns both outputs of the same runs, each float32, shape (N, C).

        Raises:
            GraphRefused: the graph has no output of kind logits.
        """
        named = {output.kind: output.name for output in self.manifest.graph.outputs}
        if "logits" not in named:
            raise GraphRefused("the graph has only probabilities, but calibration needs its logits")

        scores, logits = self._run(
            self._rows(pictures), [self.manifest.graph.scores.name, named["logits"]]
        )
        return to_probabilities(scores, self.manifest), logits

    def _run(
        self, rows: Iterable[NDArray[Any]], outputs: Sequence[str], batch_size: int = BATCH_SIZE
    ) -> list[NDArray[np.float32]]:
        batch_size = self.manifest.graph.fixed_batch_size or batch_size
        # Whole batches, so that only the last one is short.
        parts = [
            run_outputs(self._session, chunk, outputs, batch_size)
            for chunk in _chunks(rows, max(_CHUNK // batch_size, 1) * batch_size)
        ]
        if not parts:
            raise PicturesMissing("there are no readable pictures")

        found = [np.concatenate(columns) for columns in zip(*parts, strict=True)]
        if not all(np.isfinite(values).all() for values in found):
            raise GateFailed("the graph returns values that are not finite")
        return found

    def _rows(self, pictures: Iterable[Picture]) -> Iterator[NDArray[Any]]:
        return (self._prepare(picture.data, self.manifest) for picture in pictures)


def answer_labelled(
    scorer: Scorer, pictures: Iterable[Picture]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Returns the probabilities of labelled pictures, float32 (N, C), and their classes, int64 (N,).

    Raises:
        PicturesMissing: there are none, or one has no class index.
    """
    indexes: list[int] = []  # filled as the pictures are read: the iterable may be read only once

    def record_indexes() -> Iterator[Picture]:
        for picture in pictures:
            if picture.index is None:
                raise PicturesMissing(f"{picture.name} has no class")
            indexes.append(picture.index)
            yield picture

    probabilities = scorer.probabilities(record_indexes())
    return probabilities, np.array(indexes, dtype=np.int64)


def accuracy(
    probabilities: NDArray[np.float32], indexes: NDArray[np.int64], dataset: str
) -> Metrics:
    """Returns top-1 and top-5 in percent, with the binomial standard error of top-1."""
    n = len(indexes)
    top1, top5 = (top_k_accuracy(probabilities, indexes, k) for k in (1, 5))
    return Metrics(
        top1_percent=round(100 * top1, 3),
        top5_percent=round(100 * top5, 3),
        n_images=n,
        standard_error=round(100 * math.sqrt(top1 * (1 - top1) / n), 3),
        dataset=dataset,
    )


def agreement_percent(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Returns the percentage of rows, shape (N, C), in which both have the same first class."""
    return round(100 * float((one.argmax(axis=1) == other.argmax(axis=1)).mean()), 3)


def _chunks(rows: Iterable[NDArray[Any]], size: int) -> Iterator[list[NDArray[Any]]]:
    iterator = iter(rows)
    while chunk := list(islice(iterator, size)):
        yield chunk
