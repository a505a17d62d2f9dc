"""Imports an ONNX file; the user supplies the labels and the preprocessing.

There is no network to compare with, so the graph is its own reference: scores must be finite and
must not depend on the batch size. The golden examples are its present predictions.

Shapes: N pictures, C classes.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from pydantic import ValidationError

from contract.manifest import Activation, Label, Layout, Preprocessing, Rgb
from training.data.labels.read import read_labels
from training.data.pictures import Picture, input_rows
from training.errors import GraphRefused, InputRefused, first_line
from training.evaluation.session import open_session, run_rows
from training.export import describe as graphs
from training.export.draft import Draft
from training.release.folders import FolderEvidence
from training.release.foreign import read_foreign
from training.release.gates import batch_sizes
from training.release.publish import Destination
from training.release.scores import (
    ScoreKind,
    ScoreMeaning,
    check_order,
    decide,
    last_operator,
    with_rows,
)

log = logging.getLogger(__name__)

# Largest difference of a score between two batch sizes, relative to the largest score.
MAX_BATCH_DIFFERENCE: Final = 1e-3

_N_PICTURES: Final = 32  # at most, if that is more than the largest batch

_MAX_PIXEL: Final = 255
_MAX_MEAN: Final = 1  # of pixels from 0 to 1
_MAX_STD: Final = 10  # above that of pixels from 0 to 1, far below that of pixels to 255

_NEEDED: Final = {
    "resize_size_px": "--resize",
    "crop_size_px": "--crop",
    "interpolation": "--interpolation",
    "mean": "--mean",
    "std": "--std",
}


@dataclass(frozen=True, slots=True)
class ForeignSpec:
    """What an ONNX file does not say about itself. All fields without a default are required.

    None stands for a flag that was not given. `mean` and `std` are for RGB scaled to 0..1.
    """

    resize_mode: str
    resize_size_px: int | None
    crop_size_px: int | None
    interpolation: str | None
    mean: Rgb | None
    std: Rgb | None
    input_layout: Layout | Literal["auto"] = "auto"
    scores: ScoreKind | Literal["auto"] = "auto"
    activation: Activation | Literal["auto"] = "auto"
    output: str | None = None


def import_onnx(
    path: Path,
    labels_file: Path | None,
    spec: ForeignSpec,
    to: Destination,
    evidence: FolderEvidence,
) -> Draft:
    """Checks an ONNX file and makes a draft of it.

    Raises:
        InputRefused: the file, the labels, the preprocessing or the licence cannot be used.
    """
    missing = [flag for name, flag in _NEEDED.items() if getattr(spec, name) is None]
    if labels_file is None or missing:
        missing = ["--labels", *missing] if labels_file is None else missing
        raise InputRefused(f"an ONNX file needs {', '.join(missing)}")

    license_id = to.license_or(None)
    labels = read_labels(labels_file)

    graph = read_foreign(path)  # bytes; `model` is its parsed form
    model = onnx.load_model_from_string(graph)
    graph_input = graphs.describe_input(
        model, None if spec.input_layout == "auto" else spec.input_layout, spec.crop_size_px
    )
    output = graphs.describe_scores(model, len(labels), spec.output)
    preprocessing = _preprocessing(spec, in_graph=graph_input.dtype == "uint8")
    size = graph_input.shape[2]  # height in NCHW, width in NHWC; the input is square
    if size != spec.crop_size_px:
        raise GraphRefused(f"the graph's input is {size} px, but --crop is {spec.crop_size_px}")

    draft = Draft(
        name=to.name,
        version=to.version,
        architecture=f"ONNX file {path.name}",
        model=graph,
        graph=graphs.describe_foreign(graph, graph_input, output, "logits"),
        preprocessing=preprocessing,
        labels=labels,
        license=license_id,
        weights_source=f"ONNX file {path.name}",
        command=to.command,
    )

    # The kind of the scores is only known after a run; "logits" above is a placeholder.
    scores = _warm_up(draft, evidence.golden(), evidence.max_batch)
    return _with_meaning(draft, scores, spec)


def _with_meaning(draft: Draft, scores: NDArray[np.float32], spec: ForeignSpec) -> Draft:
    """Returns the draft with what its scores mean, and a graph that has one for each label.

    Args:
        draft: with the graph as it is in the file.
        scores: float32, shape (N,), (N, C) or (N, C, 1, ...): the graph's answers to some pictures.
        spec: what the user says about them.
    """
    rows = scores.reshape(len(scores), -1)
    n_scores, n_labels = rows.shape[1], len(draft.labels)
    if n_scores not in (1, n_labels) or (n_scores == 1 and n_labels > 2):
        raise GraphRefused(f"the graph has {n_scores} classes, but --labels has {n_labels}")

    model = onnx.load_model_from_string(draft.model)
    output = draft.graph.scores.name
    check_order(model, output)
    meaning = decide(
        last_operator(model, output),
        rows,
        None if spec.scores == "auto" else spec.scores,
        None if spec.activation == "auto" else spec.activation,
    )

    graph, notes = draft.model, draft.notes
    if n_scores < n_labels:
        graph, output = with_rows(model, output, meaning.kind)
        meaning = ScoreMeaning("probabilities", "softmax")
        notes = (*notes, _two_classes_note(draft.labels))
        log.info("%s", notes[-1])
    elif scores.ndim != 2:
        graph, output = with_rows(model, output, None, n_scores)

    described = graphs.describe_foreign(graph, draft.graph.input, output, meaning.kind)
    log.info("graph: %.1f MB, opset %d, scores: %s", len(graph) / 1e6, described.opset, meaning)
    return replace(draft, model=graph, graph=described, activation=meaning.activation, notes=notes)


def _two_classes_note(labels: tuple[Label, ...]) -> str:
    return (
        f"The file has one score, taken for the probability of {labels[1].name!r}, the second label. The "
        f"published graph adds that of {labels[0].name!r}."
    )


def _preprocessing(spec: ForeignSpec, *, in_graph: bool) -> Preprocessing:
    _check_normalization(spec)
    try:
        return Preprocessing.model_validate(
            {
                "resize_mode": spec.resize_mode,
                "resize_size_px": spec.resize_size_px,
                "crop_size_px": spec.crop_size_px,
                "interpolation": spec.interpolation,
                "mean": spec.mean,
                "std": spec.std,
                "in_graph": in_graph,
            }
        )
    except ValidationError as error:
        raise InputRefused(f"preprocessing: {_in_flags(error)}") from error


def _check_normalization(spec: ForeignSpec) -> None:
    # Many tools give them for pixels as they are in the file, and no answer would look wrong enough.
    if spec.mean is None or spec.std is None:
        return
    if max(spec.mean) > _MAX_MEAN or max(spec.std) > _MAX_STD:
        mean, std = (
            ",".join(f"{value / _MAX_PIXEL:.4g}" for value in values)
            for values in (spec.mean, spec.std)
        )
        raise InputRefused(
            "--mean and --std are for pixels from 0 to 1; if these are for pixels from 0 to 255, divide "
            f"both by 255: --mean {mean} --std {std}"
        )


def _in_flags(error: ValidationError) -> str:
    message = str(error.errors()[0]["msg"]).removeprefix("Value error, ")
    for name, flag in _NEEDED.items():
        message = re.sub(rf"\b{name}\b", flag, message)
    return message


def _warm_up(draft: Draft, pictures: list[Picture], max_batch: int) -> NDArray[np.float32]:
    """Runs the graph at every batch size and returns its scores, float32, shape (N, C), (N, C, 1, ...) or (N,)."""
    fixed = draft.graph.fixed_batch_size
    sizes = (fixed,) if fixed else batch_sizes(max_batch)
    rows = input_rows(pictures, draft)
    # Repeat the pictures until they fill the largest batch. All of them are needed to see whether the
    # sums of the scores differ.
    n = max(*sizes, min(len(rows), _N_PICTURES))
    rows = [rows[i % len(rows)] for i in range(n)]
    try:
        session = open_session(draft.model)
        answers = [run_rows(session, rows, draft.graph.scores.name, size) for size in sizes]
    except Exception as error:  # onnxruntime's errors have no common base class
        raise GraphRefused(f"the graph fails to run: {first_line(error)}") from error
    _check_answers(answers, len(rows), draft.model)
    return answers[0]


def _check_answers(answers: list[NDArray[Any]], n: int, graph: bytes) -> None:
    for answer in answers:
        if (
            answer.ndim < 1
            or len(answer) != n
            or answer[0].size != max(answer.shape[1:2], default=1)
        ):
            raise GraphRefused(
                f"the scores of {n} pictures have the shape {answer.shape}, expected ({n}, classes)"
            )
        if not np.isfinite(answer).all():
            raise GraphRefused("the graph returns NaN or infinite scores")
    scale = max(float(np.abs(answers[0]).max()), 1e-12)
    for answer in answers[1:]:
        if float(np.abs(answer - answers[0]).max()) > MAX_BATCH_DIFFERENCE * scale:
            raise GraphRefused(
                f"the scores of a picture depend on the batch size{_reason_in(graph)}"
            )


def _reason_in(graph: bytes) -> str:
    nodes = onnx.load_model_from_string(graph).graph.node
    if any(node.op_type == "DynamicQuantizeLinear" for node in nodes):
        return (
            ", because the graph quantizes dynamically, over all pictures of a batch; import the float graph "
            "with --int8, or quantize it statically"
        )
    return ""
