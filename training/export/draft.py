"""A version before it is published: the ONNX file and the parts of its manifest known so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal

from contract.manifest import (
    Activation,
    Calibration,
    Classifier,
    Comparison,
    GoldenExample,
    Graph,
    HalfPrecision,
    Label,
    Layers,
    Manifest,
    Metrics,
    Parity,
    Preprocessing,
    Provenance,
    Quantization,
    ReferenceStatistics,
)
from contract.versions import sha256
from training.errors import VersionUnproven
from training.system.environment import installed_versions


@dataclass(frozen=True, slots=True)
class Draft:
    """The parts of a manifest, with the graph's bytes; usable as a `contract` `Interface`."""

    name: str
    version: int
    architecture: str
    model: bytes  # the ONNX file
    graph: Graph
    preprocessing: Preprocessing
    labels: tuple[Label, ...]
    license: str
    weights_source: str
    command: str | None = None
    config_sha256: str | None = None
    seed: int | None = None
    notes: tuple[str, ...] = ()  # sentences for the model card
    activation: Activation = "softmax"
    calibration: Calibration = field(default_factory=Calibration)
    metrics: Metrics | None = None
    parity: Parity | None = None
    quantization: Quantization | None = None
    half_precision: HalfPrecision | None = None
    classifier: Classifier | None = None
    layers: Layers | None = None
    reference: ReferenceStatistics | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)  # of `classifier` and `layers`
    comparison: Comparison | None = None  # with the version that it replaces

    @property
    def n_classes(self) -> int:
        return len(self.labels)

    @property
    def precision(self) -> Literal["int8", "fp16", "fp32"]:
        if self.quantization is not None:
            return "int8"
        return "fp32" if self.half_precision is None else "fp16"

    def with_model(self, model: bytes) -> Draft:
        """Returns the draft with another graph that has the same inputs and outputs."""
        known = self.graph
        graph = Graph(
            file=known.file,
            sha256=sha256(model),
            opset=known.opset,
            input=known.input,
            outputs=known.outputs,
        )
        return replace(self, model=model, graph=graph)

    def to_manifest(self, golden: Sequence[GoldenExample], files: Mapping[str, bytes]) -> Manifest:
        """Returns the manifest of the finished version, with the digests of its files and the time.

        Args:
            golden: the golden examples.
            files: the content of each file except the manifest, by its path in the version's folder.

        Raises:
            VersionUnproven: the parts contradict each other.
        """
        try:
            return Manifest(
                name=self.name,
                version=self.version,
                created_at=datetime.now(UTC).replace(microsecond=0),
                architecture=self.architecture,
                graph=self.graph,
                preprocessing=self.preprocessing,
                labels=self.labels,
                activation=self.activation,
                calibration=self.calibration,
                metrics=self.metrics,
                parity=self.parity,
                quantization=self.quantization,
                half_precision=self.half_precision,
                classifier=self.classifier,
                layers=self.layers,
                reference=self.reference,
                comparison=self.comparison,
                golden=tuple(golden),
                files={path: sha256(data) for path, data in sorted(files.items())},
                provenance=Provenance(
                    license=self.license,
                    weights_source=self.weights_source,
                    command=self.command,
                    config_sha256=self.config_sha256,
                    seed=self.seed,
                    versions=installed_versions(),
                ),
            )
        except ValueError as error:
            raise VersionUnproven(f"the manifest contradicts itself: {error}") from error
