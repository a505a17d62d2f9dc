"""Writes MODEL_CARD.md, the description of a version for people, from the facts of its draft."""

from __future__ import annotations

from typing import Final

from contract.comparison import OUTCOMES
from contract.manifest import Activation, HalfPrecision, Quantization
from training.evaluation.parity import N_EVERY_BATCH
from training.export.draft import Draft
from training.release.replacement import comparison_text

FILE: Final = "MODEL_CARD.md"
_KINDS: Final = {"int8": "an int8 graph", "fp16": "a float16 graph", "fp32": "a float graph"}
_LABELS_OF: Final = {
    "softmax": "The probabilities of a picture sum to 1.",
    "sigmoid": "Each has a probability of its own (sigmoid), so a picture may have several or none.",
}
_RULES: Final = {
    "energy": "energy",
    "neighbours": "negative distance from its nearest training pictures",
}


def model_card(draft: Draft) -> str:
    sections = [
        f"# {draft.name}, version {draft.version}",
        _summary(draft),
        "## Input and output",
        _interface(draft),
        "## Accuracy",
        _accuracy(draft),
        "## Calibration",
        _calibration(draft),
        "## Origin and licence",
        _origin(draft),
        "## Limits",
        _limits(draft),
    ]
    return "\n\n".join(sections) + "\n"


def _summary(draft: Draft) -> str:
    kind = _KINDS[draft.precision]
    return (
        f"An image classifier with {draft.n_classes:,} classes: {draft.architecture} as {kind}. Every "
        "number below is also in `manifest.json`."
    )


def _interface(draft: Draft) -> str:
    spec, graph = draft.preprocessing, draft.graph
    resize = "shorter side resized" if spec.resize_mode == "shortest_side" else "both sides resized"
    shape = ", ".join("N" if axis is None else str(axis) for axis in graph.input.shape)
    where = "inside the graph" if spec.in_graph else "before the graph"
    outputs = ", ".join(f"`{output.name}` ({output.kind})" for output in graph.outputs)
    weights = (
        f" The last layer's weights are in `{draft.classifier.file}`." if draft.classifier else ""
    )
    first, last = draft.labels[0].name, draft.labels[-1].name
    return "\n".join(
        (
            f"- Pictures: {resize} to {spec.resize_size_px} px ({spec.interpolation}), then the "
            f"centre {spec.crop_size_px} x {spec.crop_size_px} px are cropped.",
            f"- Input: `{graph.input.name}`, {graph.input.dtype}, {graph.input.layout} ({shape}); "
            f"normalised {where} with mean {_rgb(spec.mean)} and std {_rgb(spec.std)}.",
            f"- Outputs: {outputs}.{weights}",
            f"- Labels: {draft.n_classes:,}, from {first!r} to {last!r}. {_LABELS_OF[draft.activation]}",
        )
    )


def _accuracy(draft: Draft) -> str:
    lines = [_measured(draft)]
    parity = draft.parity
    if parity:
        lines.append(
            f"Parity with {parity.reference}, from the files of {parity.n_images} pictures: same first "
            f"class in {parity.top1_agreement_percent:g}%, largest difference of a probability "
            f"{parity.max_abs_difference:.2g}. Batch sizes "
            f"{', '.join(map(str, parity.batch_sizes))}; all but the largest were checked with the "
            f"first {N_EVERY_BATCH} pictures only."
        )
    lines += _cost(draft)
    if draft.comparison is not None:
        text = comparison_text(draft.comparison, draft.name)
        lines.append(f"{text[0].upper()}{text[1:]}.")
    return "\n".join(f"- {line}" for line in (*lines, *draft.notes))


def _cost(draft: Draft) -> list[str]:
    # What the lower precision cost.
    int8, half = draft.quantization, draft.half_precision
    if int8:
        return [
            f"Quantization: {int8.method}; calibrated on {int8.n_calibration_images} pictures "
            f"({int8.calibration_data}). {_against_float(int8, draft.activation)}"
        ]
    if half:
        return [
            f"Half precision: {half.method}. {_against_float(half, draft.activation)} The largest difference of a "
            f"probability is {half.max_abs_difference:.2g}. Measured with every result rounded to "
            "float16, as on hardware with float16 arithmetic. CPUs compute the graph in float32 "
            "and round less."
        ]
    return []


def _against_float(loss: Quantization | HalfPrecision, activation: Activation) -> str:
    found = loss.against_float
    if found is None:
        return f"The first class is the float graph's for {loss.top1_agreement_percent:g}% of pictures."

    verb = "is" if activation == "softmax" else "are"
    agreement, kl, drop = found.agreement_percent, found.mean_kl, found.drop_percent
    text = (
        f"On {found.n_images:,} pictures, the {OUTCOMES[activation]} {verb} the float graph's for "
        f"{agreement.value:.2f}% ({agreement.low:.2f} to {agreement.high:.2f}), and the mean KL divergence "
        f"from its probabilities is {kl.value:.4f} ({kl.low:.4f} to {kl.high:.4f})"
    )
    if drop is not None:
        text += (
            f"; top-1 changes by {0 - drop.value:+.2f} points ({0 - drop.high:+.2f} to "
            f"{0 - drop.low:+.2f})"
        )
    return text + "."


def _measured(draft: Draft) -> str:
    metrics = draft.metrics
    if metrics is None:
        return "Not measured: no labelled pictures were given."
    return (
        f"Top-1 {metrics.top1_percent:.2f}% (standard error {metrics.standard_error:.2f}), "
        f"top-5 {metrics.top5_percent:.2f}%, n = {metrics.n_images:,}, measured with this graph from "
        f"image files. Data: {metrics.dataset}."
    )


def _calibration(draft: Draft) -> str:
    facts = draft.calibration
    if facts.ece_percent is None:
        return f"Not calibrated: the probabilities are the network's own {draft.activation}."
    before = facts.ece_before_percent
    lines = [
        f"Temperature {facts.temperature:.3g}, fitted on {facts.n_fitted:,} validation pictures. "
        f"Expected calibration error on the test pictures: {facts.ece_percent:.2f}%"
        + (f" ({before:.2f}% before)." if before is not None else ".")
    ]
    lines += [
        f"Prediction sets for {row.coverage_percent:g}% coverage: the first class and every class "
        f"with a probability of at least {row.min_probability:.3g}. Measured coverage "
        f"{row.achieved_percent:.1f}%, {row.mean_set_size:.2f} classes on average."
        for row in facts.conformal
    ]
    if facts.unlike:
        lines.append(
            f"A picture is flagged as unlike the training data if its {_RULES[facts.unlike.kind]} is below "
            f"{facts.unlike.threshold:.4g}. {facts.unlike.flagged_percent:.1f}% of the test pictures "
            "are flagged, wrongly."
        )
    return "\n".join(f"- {line}" for line in lines)


def _origin(draft: Draft) -> str:
    lines = [f"Weights: {draft.weights_source}.", f"Licence of the weights: {draft.license}."]
    if draft.command:
        lines.append(f"Made by `{draft.command}`.")
    return "\n".join(f"- {line}" for line in lines)


def _limits(draft: Draft) -> str:
    softmax = "- The model always predicts one of its labels, also for a picture of something else."
    sigmoid = "- A picture of something else may get labels too."
    return "\n".join(
        (
            sigmoid if draft.activation == "sigmoid" else softmax,
            "- Accuracy is lower on pictures that differ from the training data.",
        )
    )


def _rgb(values: tuple[float, float, float]) -> str:
    return f"({', '.join(f'{value:g}' for value in values)})"
