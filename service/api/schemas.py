"""The response documents of the native dialect.

Versions are strings, as in the protocols of Triton, KServe and TF Serving.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field

from contract.manifest import Label
from service.http.problems import problem_document
from service.models.repository import LoadedVersion, Repository
from service.serving.classifier import Classification, Outcome


class PredictionDocument(BaseModel):
    """One class and its probability."""

    label: str
    index: int = Field(description="Position in the model's output, from 0.")
    synset: str | None = Field(None, description="WordNet id, if the model has one for this class.")
    probability: float


class ErrorDocument(BaseModel):
    """Why one of several pictures was not classified."""

    status: int
    code: str
    title: str
    detail: str


class ResultDocument(BaseModel):
    """The predictions for one of several pictures, or its error."""

    predictions: list[PredictionDocument] | None = None
    error: ErrorDocument | None = None


class ClassifyDocument(BaseModel):
    """`predictions` if one picture was sent, `results` if a list was sent."""

    model: str
    version: str
    predictions: list[PredictionDocument] | None = None
    results: list[ResultDocument] | None = None
    request_id: str


class ModelDocument(BaseModel):
    """One served version: its input, quality, origin and execution provider."""

    name: str
    version: str
    ready: bool
    versions: list[str] = Field(description="All served versions of this model.")
    architecture: str
    n_classes: int
    input: dict[str, Any]
    preprocessing: dict[str, Any]
    metrics: dict[str, Any] | None
    parity: dict[str, Any] | None
    quantization: dict[str, Any] | None = Field(
        description="How an int8 graph was quantized; null for others."
    )
    half_precision: dict[str, Any] | None = Field(
        description="How a float16 graph was converted; null for others."
    )
    calibration: dict[str, Any]
    provenance: dict[str, Any]
    created_at: str
    sha256: str = Field(
        description="SHA-256 of the manifest, which lists the digests of all files."
    )
    graph_sha256: str
    provider: str
    provider_fallback: str | None = Field(
        description="Why a preferred execution provider is not used; null if it is."
    )
    golden_difference: float = Field(
        description="Largest difference from a golden probability when the version was loaded, with "
        "the reference pixels or with those of a request."
    )


class ModelListDocument(BaseModel):
    """All served models."""

    models: list[str]
    default: str = Field(description="The model that /v1/classify uses.")
    details: list[ModelDocument]


class LabelDocument(BaseModel):
    """One class of a model."""

    index: int
    name: str
    synset: str | None = None


class LabelsDocument(BaseModel):
    """The classes of a version, in the order of the model's output."""

    model: str
    version: str
    labels: list[LabelDocument]


class HealthDocument(BaseModel):
    """The response of a successful health check."""

    status: str


def _prediction_members(label: Label, index: int, probability: float) -> dict[str, Any]:
    members: dict[str, Any] = {"label": label.name, "index": index}
    if label.synset is not None:
        members["synset"] = label.synset
    # Six decimals are finer than any tolerance here and halve the bytes.
    members["probability"] = round(probability, 6)
    return members


def classification_fields(
    answer: Classification, request_id: str, *, as_list: bool
) -> dict[str, Any]:
    """Returns the members of a `ClassifyDocument`. A plain dict: no validation of our own output.

    Without `as_list`, the only outcome must not be an error.
    """
    members: dict[str, Any] = {
        "model": answer.manifest.name,
        "version": str(answer.manifest.version),
    }
    labels = answer.manifest.labels
    results = [_result_members(outcome, labels, request_id) for outcome in answer.outcomes]
    if as_list:
        members["results"] = results
    else:
        members.update(results[0])
    members["request_id"] = request_id
    return members


def _result_members(outcome: Outcome, labels: Sequence[Label], request_id: str) -> dict[str, Any]:
    if isinstance(outcome, list):
        predictions = [_prediction_members(labels[at], at, value) for at, value in outcome]
        return {"predictions": predictions}
    problem = problem_document(outcome, request_id)
    return {"error": {key: problem[key] for key in ("status", "code", "title", "detail")}}


def model_document(version: LoadedVersion, repository: Repository, *, ready: bool) -> ModelDocument:
    manifest = version.manifest
    plain = manifest.model_dump(mode="json", exclude_none=True)

    return ModelDocument(
        name=manifest.name,
        version=str(manifest.version),
        ready=ready,
        versions=[str(number) for number in repository.models[manifest.name]],
        architecture=manifest.architecture,
        n_classes=manifest.n_classes,
        input=plain["graph"]["input"],
        preprocessing=plain["preprocessing"],
        metrics=plain.get("metrics"),
        parity=plain.get("parity"),
        quantization=plain.get("quantization"),
        half_precision=plain.get("half_precision"),
        calibration=plain["calibration"],
        provenance=plain["provenance"],
        created_at=plain["created_at"],
        sha256=version.manifest_sha256,
        graph_sha256=manifest.graph.sha256,
        provider=version.provider,
        provider_fallback=version.fallback.reason if version.fallback else None,
        golden_difference=version.golden_difference,
    )
