"""manifest.json: everything the service must know about a version, in one strict document.

Field names follow timm's PretrainedCfg where it has one. Unknown fields, missing labels and
contradictions are errors. `contract/manifest.schema.json` is the JSON schema. Manifests of older
schema versions are upgraded while they are parsed (`contract.upgrades`).

Shapes: N pictures, C classes, D = length of the embedding.
"""

from __future__ import annotations

import re
from collections import Counter
from datetime import datetime
from typing import Annotated, Final, Literal, Protocol, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, from_json

from contract.errors import ManifestInvalid
from contract.upgrades import SCHEMA_VERSION, upgrade

NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
NAME_RULE: Final = (
    "up to 64 letters, digits, dots, hyphens and underscores, starting with a letter or digit"
)
MANIFEST_FILE: Final = "manifest.json"
SEAL_FILE: Final = "manifest.sha256"
"""The manifest's digest, in the format of sha256sum. The manifest holds every other digest."""
_UPGRADE: Final = "if a newer convserve wrote this version, upgrade convserve"


def _relative_path(path: str) -> str:
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or re.search(r"[\\:\x00-\x1f]", path):
        raise ValueError("must be a relative path inside the version's folder")
    return path


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Percent = Annotated[float, Field(ge=0.0, le=100.0)]
RelativePath = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_relative_path)]
Rgb = tuple[float, float, float]
Layout = Literal["NHWC", "NCHW"]
Activation = Literal["softmax", "sigmoid"]
Counts = tuple[Annotated[int, Field(ge=0)], ...]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class GraphInput(_Strict):
    """The graph's only input: a batch of pictures."""

    name: str
    dtype: Literal["uint8", "float32"]
    layout: Layout
    shape: tuple[int | None, int, int, int] = Field(
        description="the first entry is null (any batch size) or 1 (one picture per run)"
    )


class GraphOutput(_Strict):
    """One output. A graph has one of kind `probabilities` or `logits`, or one of each.

    The side outputs cost nothing unless they are fetched: `embedding` (N, D) is the input of the last
    layer, and `feature_map` holds the features of each position before they are pooled.
    """

    name: str
    kind: Literal["probabilities", "logits", "embedding", "feature_map"]
    layout: Layout | None = Field(
        default=None, description="axes of a feature_map; null for others"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.kind == "feature_map") != (self.layout is not None):
            raise ValueError("layout: required for a feature_map, and only for a feature_map")
        return self


class Graph(_Strict):
    """The ONNX file and its signature."""

    file: RelativePath
    sha256: Sha256
    opset: int = Field(ge=7)
    input: GraphInput
    outputs: tuple[GraphOutput, ...] = Field(min_length=1)

    @property
    def scores(self) -> GraphOutput:
        """The output that predictions are made from: probabilities if there are any, else logits."""
        by_kind = {output.kind: output for output in self.outputs}
        return by_kind.get("probabilities") or by_kind["logits"]

    def output_of(self, kind: str) -> GraphOutput | None:
        """Returns the output of this kind, None if the graph has none."""
        return next((output for output in self.outputs if output.kind == kind), None)

    @property
    def fixed_batch_size(self) -> int | None:
        """1 if the graph takes one picture per run, None if it takes any number."""
        return self.input.shape[0]

    @model_validator(mode="after")
    def _check(self) -> Self:
        kinds = Counter(output.kind for output in self.outputs)
        if not kinds["probabilities"] and not kinds["logits"]:
            raise ValueError("outputs: one of kind probabilities or logits is required")
        if max(kinds.values()) > 1 or len({o.name for o in self.outputs}) < len(self.outputs):
            raise ValueError("outputs: names and kinds must be unique")
        if self.fixed_batch_size not in (None, 1):
            raise ValueError("input.shape: the first entry must be null (any batch size) or 1")
        return self


class Preprocessing(_Strict):
    """How `contract.preprocessing` turns upright RGB pixels into the input tensor."""

    resize_mode: Literal["shortest_side", "squash"] = "shortest_side"
    resize_size_px: int = Field(ge=1, le=8192)
    crop_size_px: int = Field(ge=1, le=8192)
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"]
    mean: Rgb = Field(description="per channel, for values scaled to 0..1")
    std: Rgb = Field(description="per channel, for values scaled to 0..1")
    in_graph: bool = Field(description="the graph takes uint8 pixels and normalises them itself")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.crop_size_px > self.resize_size_px:
            raise ValueError("crop_size_px must not exceed resize_size_px")
        if min(self.std) <= 0:
            raise ValueError("std must be positive")
        return self


class Label(_Strict):
    """The human name of one class."""

    index: int = Field(ge=0)
    name: str = Field(min_length=1, max_length=200)
    synset: str | None = Field(default=None, pattern=r"^n[0-9]{8}$")


class ConformalSet(_Strict):
    """Split-conformal prediction sets of one coverage (Sadinle et al. 2019, arXiv:1609.00451).

    A picture's set holds the most probable class and every class whose probability reaches the
    threshold.
    """

    coverage_percent: Percent = Field(description="target: how often the set holds the true class")
    min_probability: Probability = Field(description="a class with this probability is in the set")
    achieved_percent: Percent = Field(description="coverage measured on the test pictures")
    mean_set_size: float = Field(ge=1.0, description="classes per set, on the test pictures")


class EnergyRule(_Strict):
    """Flags a picture as unlike the training pictures by its energy.

    The score is T * logsumexp(logits / T), where T is the calibration's temperature (the negative
    free energy of Liu et al. 2020, arXiv:2010.03759).
    """

    kind: Literal["energy"] = "energy"
    threshold: float = Field(description="a picture with a lower score is flagged")
    flagged_percent: Percent = Field(description="test pictures that are flagged wrongly")


class NeighbourRule(_Strict):
    """Flags a picture as unlike the training pictures by its distance from them.

    The score is the negative Euclidean distance from the picture's embedding to the k-th nearest
    reference embedding, all scaled to length 1 (Sun et al. 2022, arXiv:2204.06507).
    """

    kind: Literal["neighbours"] = "neighbours"
    file: RelativePath = Field(description=".npz with `embeddings`, float32, shape (M, D)")
    n_neighbours: int = Field(ge=1, description="k")
    threshold: float = Field(description="a picture with a lower score is flagged")
    flagged_percent: Percent = Field(description="test pictures that are flagged wrongly")


UnlikeRule = Annotated[EnergyRule | NeighbourRule, Field(discriminator="kind")]


class Calibration(_Strict):
    """How the probabilities were adjusted to match the accuracy.

    Fitted on validation pictures and measured on test pictures, from image bytes, with the
    published graph. A graph that returns probabilities already contains the temperature.
    """

    temperature: float = Field(default=1.0, gt=0, description="logits are divided by it")
    ece_percent: Percent | None = Field(default=None, description="expected calibration error")
    ece_before_percent: Percent | None = Field(
        default=None, description="ece_percent at a temperature of 1"
    )
    n_fitted: int | None = Field(default=None, ge=1, description="validation pictures")
    conformal: tuple[ConformalSet, ...] = ()
    unlike: UnlikeRule | None = None


class Metrics(_Strict):
    """Accuracy of the published graph, measured from image bytes."""

    top1_percent: Percent
    top5_percent: Percent
    n_images: int = Field(ge=1)
    standard_error: Percent = Field(description="of top1_percent, binomial")
    dataset: str
    evaluated_on: Literal["onnx-bytes"] = "onnx-bytes"


class Parity(_Strict):
    """How closely the published graph matches the network it comes from, from image bytes."""

    reference: str = Field(description="what the graph was compared with")
    max_abs_difference: float = Field(ge=0, description="largest difference in a probability")
    top1_agreement_percent: Percent
    n_images: int = Field(ge=1)
    batch_sizes: tuple[int, ...]


class Measured(_Strict):
    """A measured value and the bounds of its 95% confidence interval."""

    value: float
    low: float
    high: float


class FloatComparison(_Strict):
    """How a graph of lower precision answered the pictures of its gate, compared with the float graph.

    A free picture that the float graph is not sure about counts for `mean_kl` only.
    """

    n_images: int = Field(ge=1)
    agreement_percent: Measured = Field(
        description="pictures with the same first class; with sigmoid, the same labels above 0.5"
    )
    mean_kl: Measured = Field(
        description="mean Kullback-Leibler divergence from the float graph's probabilities, in nats; "
        "with sigmoid, the sum over the labels of a picture"
    )
    drop_percent: Measured | None = Field(
        default=None, description="top-1 of the float graph minus top-1 of this one, in points"
    )


class Quantization(_Strict):
    """How an int8 graph was made and what it cost."""

    weights: Literal["int8"] = "int8"
    activations: Literal["uint8"] = "uint8"
    method: str
    calibration_data: str
    n_calibration_images: int = Field(ge=1)
    accuracy_drop_percent: float | None = Field(
        default=None, description="top-1 of the float graph minus top-1 of this one, in points"
    )
    top1_agreement_percent: Percent = Field(description="agreement with the float graph")
    against_float: FloatComparison | None = None


class HalfPrecision(_Strict):
    """How a float16 graph was made and what it cost on a processor that computes in float16."""

    method: str
    accuracy_drop_percent: float | None = Field(
        default=None, description="top-1 of the float graph minus top-1 of this one, in points"
    )
    top1_agreement_percent: Percent = Field(description="with the float graph")
    max_abs_difference: float = Field(
        ge=0, description="largest difference of a probability from the float graph"
    )
    against_float: FloatComparison | None = None


class Comparison(_Strict):
    """How the version compares with the one it replaces, on the same pictures, from image bytes.

    Only pictures of classes that both versions have count. Without labelled pictures, the answers to
    others are compared, and top-1 is unknown.
    """

    version: int = Field(ge=1, description="the version that it was compared with")
    n_images: int = Field(ge=0)
    top1_before_percent: Percent | None = Field(default=None, description="of the other version")
    top1_after_percent: Percent | None = Field(default=None, description="of this version")
    difference_percent: float | None = Field(
        default=None, description="top-1 of this version minus that of the other, in points"
    )
    difference_low_percent: float | None = Field(
        default=None, description="lower bound of its 95% interval"
    )
    difference_high_percent: float | None = Field(
        default=None, description="upper bound of its 95% interval"
    )
    changed_answers: int = Field(ge=0, description="pictures with another first class")
    labels_added: tuple[str, ...] = ()
    labels_removed: tuple[str, ...] = ()
    labels_renamed: dict[str, str] = Field(default_factory=dict, description="old name to new name")


class GoldenPrediction(_Strict):
    """One expected prediction of a golden example."""

    index: int = Field(ge=0)
    label: str
    probability: Probability


class GoldenExample(_Strict):
    """A picture and the answer that this version must give for it, wherever it is loaded."""

    file: RelativePath
    sha256: Sha256
    top5: tuple[GoldenPrediction, ...] = Field(min_length=1, max_length=5)
    tolerance: float = Field(
        gt=0,
        le=0.2,
        description="allowed difference in a probability: processors sum in different orders",
    )
    served_tolerance: float | None = Field(
        default=None,
        gt=0,
        le=0.25,
        description="allowed difference with the pixels of a request; null: 0.1 or the tolerance, the larger",
    )
    undecided: Literal[True] | None = Field(
        default=None,
        description="true: no class is clearly first, so only the probabilities say something",
    )


class Migration(_Strict):
    """The version that this one was made from by upgrading its manifest. Nothing else changed."""

    version: int = Field(ge=1)
    schema_version: int = Field(ge=1)
    manifest_sha256: Sha256


class Relabelling(_Strict):
    """The version that this one was made from by renaming classes. The graph is the same."""

    version: int = Field(ge=1)
    manifest_sha256: Sha256


class Provenance(_Strict):
    """Where the version came from."""

    license: str
    weights_source: str
    command: str | None = None
    git_revision: str | None = None
    config_sha256: Sha256 | None = None
    seed: int | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    migrated_from: Migration | None = None
    relabelled_from: Relabelling | None = None


class Classifier(_Strict):
    """The weights of the last layer, for class activation maps (Zhou et al. 2016, arXiv:1512.04150).

    The logits are the mean of the feature map over its positions, times `weight`, plus `bias`. So
    `weight` applied to each position of the feature map shows where a class was found.
    """

    file: RelativePath = Field(
        description=".npz with `weight`, float32, shape (C, D), and `bias`, float32, shape (C,)"
    )
    n_features: int = Field(ge=1, description="D, the channels of the feature map")


class LayerOutput(_Strict):
    """One layer's values, float32, an output of the graph of the layers."""

    name: str
    operator: str = Field(description="the ONNX operator that computes it, such as Conv")
    module: str | None = Field(
        default=None, description="the network's part that computes it, such as blocks.0.conv"
    )
    layout: Layout | None = Field(default=None, description="null for values without a position")


class Layers(_Strict):
    """A second graph, which takes the same input and returns the values of every layer.

    Only its digest is checked when the version is loaded. It is read when somebody looks inside.
    """

    file: RelativePath
    outputs: tuple[LayerOutput, ...] = Field(
        min_length=1, description="from the input to the scores"
    )


class ReferenceStatistics(_Strict):
    """Inputs and predictions on the test pictures, to compare with those of requests (drift).

    `contract.statistics` computes them. Histograms hold numbers of pictures, in bins of equal width
    from 0 to 1.
    """

    dataset: str
    n_images: int = Field(ge=1)
    channel_mean: Rgb = Field(description="of the prepared pixels, red, green and blue, 0 to 1")
    channel_std: Rgb = Field(description="of the prepared pixels, 0 to 1")
    brightness: Counts = Field(min_length=1, description="histogram of a picture's mean brightness")
    first_class: Counts = Field(min_length=1, description="pictures by most probable class, (C,)")
    confidence: Counts = Field(
        min_length=1, description="histogram of the probability of the first class"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name in ("brightness", "first_class", "confidence"):
            if sum(getattr(self, name)) != self.n_images:
                raise ValueError(f"{name}: the counts must sum to n_images")
        return self


class Interface(Protocol):
    """How a graph takes pictures and what its scores mean.

    `Manifest` implements it, and so does a version that is not published yet.
    """

    @property
    def graph(self) -> Graph:
        """The ONNX file and its signature."""

    @property
    def preprocessing(self) -> Preprocessing:
        """The way from upright pixels to the graph's input."""

    @property
    def labels(self) -> tuple[Label, ...]:
        """The name of each class, by class index."""

    @property
    def calibration(self) -> Calibration:
        """Holds the temperature that divides the logits if the graph does not divide them."""

    @property
    def activation(self) -> Activation:
        """Turns logits into probabilities if the graph does not."""


class Manifest(_Strict):
    """The metadata of one published version."""

    schema_version: Literal[2] = SCHEMA_VERSION
    name: str = Field(pattern=NAME_PATTERN)
    version: int = Field(ge=1)
    created_at: datetime
    architecture: str
    graph: Graph
    preprocessing: Preprocessing
    labels: tuple[Label, ...] = Field(min_length=1)
    activation: Activation = Field(
        default="softmax",
        description="softmax: one label for a picture; sigmoid: any number of labels",
    )
    calibration: Calibration = Calibration()
    metrics: Metrics | None = None
    parity: Parity | None = None
    quantization: Quantization | None = None
    half_precision: HalfPrecision | None = None
    classifier: Classifier | None = None
    layers: Layers | None = None
    reference: ReferenceStatistics | None = None
    comparison: Comparison | None = None
    golden: tuple[GoldenExample, ...] = Field(min_length=1)
    files: dict[RelativePath, Sha256] = Field(
        description="every file in the version's folder except manifest.json and its digest"
    )
    provenance: Provenance

    @property
    def n_classes(self) -> int:
        """C, the number of probabilities for one picture."""
        return len(self.labels)

    @property
    def precision(self) -> Literal["int8", "fp16", "fp32"]:
        """The number format of most of the graph's arithmetic."""
        if self.quantization is not None:
            return "int8"
        return "fp32" if self.half_precision is None else "fp16"

    @model_validator(mode="after")
    def _check_precision(self) -> Self:
        if self.quantization is not None and self.half_precision is not None:
            raise ValueError("quantization and half_precision cannot both be set")
        return self

    @model_validator(mode="after")
    def _check_input(self) -> Self:
        size, tensor = self.preprocessing.crop_size_px, self.graph.input
        expected = (size, size, 3) if tensor.layout == "NHWC" else (3, size, size)
        if tensor.shape[1:] != expected:
            raise ValueError(f"graph.input.shape must be (null or 1, {expected}) for the crop size")
        if self.preprocessing.in_graph != (tensor.dtype == "uint8"):
            raise ValueError("graph.input.dtype must be uint8 if and only if in_graph is true")
        return self

    @model_validator(mode="after")
    def _check_labels(self) -> Self:
        if [label.index for label in self.labels] != list(range(len(self.labels))):
            raise ValueError("labels: the indices must be 0, 1, 2, ... in this order")
        # ImageNet has two cranes and two maillots; their synsets tell them apart.
        keys = Counter((label.name, label.synset) for label in self.labels)
        twice = [name for (name, _), count in keys.items() if count > 1]
        if twice:
            raise ValueError(f"labels: {twice[0]!r} occurs more than once")
        return self

    @model_validator(mode="after")
    def _check_side_outputs(self) -> Self:
        unlike = self.calibration.unlike
        if self.classifier is not None and self.graph.output_of("feature_map") is None:
            raise ValueError("classifier: the graph has no output of kind feature_map")
        if isinstance(unlike, NeighbourRule) and self.graph.output_of("embedding") is None:
            raise ValueError("calibration.unlike: the graph has no output of kind embedding")
        if self.reference is not None and len(self.reference.first_class) != self.n_classes:
            raise ValueError("reference.first_class: one count for each label is required")
        return self

    @model_validator(mode="after")
    def _check_files(self) -> Self:
        listed = {self.graph.file: self.graph.sha256}
        listed.update({example.file: example.sha256 for example in self.golden})
        for path, digest in listed.items():
            if self.files.get(path) != digest:
                raise ValueError(f"files: {path} is missing or its digest differs")

        unlike = self.calibration.unlike
        named = [one.file for one in (self.classifier, self.layers) if one is not None]
        named += [unlike.file] if isinstance(unlike, NeighbourRule) else []
        for path in named:
            if path not in self.files:
                raise ValueError(f"files: {path} is missing")
        every = [*listed, *named]
        if len(set(every)) < len(every):
            raise ValueError("files: the same file has two purposes")
        if self.files.keys() & {MANIFEST_FILE, SEAL_FILE}:
            raise ValueError("files: the manifest and its digest must not be listed")

        for example in self.golden:
            for prediction in example.top5:
                if prediction.index >= self.n_classes:
                    raise ValueError(
                        f"golden: {example.file} has class {prediction.index}, "
                        f"there are {self.n_classes} labels"
                    )
                if prediction.label != self.labels[prediction.index].name:
                    raise ValueError(
                        f"golden: {example.file} names class {prediction.index} "
                        f"{prediction.label!r}, which is not its label"
                    )
        return self


def parse_manifest(text: str | bytes) -> Manifest:
    """Parses and checks the text of a manifest of any schema version up to SCHEMA_VERSION.

    Raises:
        ManifestInvalid: a field is wrong or unknown; the message names the first one.
    """
    try:
        document = from_json(text)
    except ValueError as error:
        raise ManifestInvalid(f"{MANIFEST_FILE}: not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ManifestInvalid(f"{MANIFEST_FILE}: not a JSON object")

    try:
        return Manifest.model_validate(upgrade(document))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise ManifestInvalid(f"{MANIFEST_FILE}: {_explain(first)}") from error


def _explain(error: ErrorDetails) -> str:
    where = ".".join(str(part) for part in error["loc"]) or "the document"
    if error["type"] == "extra_forbidden":
        return f"{where}: unknown field; {_UPGRADE}"
    if error["type"] == "union_tag_invalid":
        known = error["ctx"]["expected_tags"]
        return f"{where}: unknown kind, this convserve knows {known}; {_UPGRADE}"
    return f"{where}: {error['msg']}"


def dump_manifest(manifest: Manifest) -> str:
    """Returns the manifest as indented JSON text that `parse_manifest` reads back."""
    return manifest.model_dump_json(indent=1, exclude_none=True) + "\n"
