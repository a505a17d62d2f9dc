"""The documents that the native endpoints answer with.

Versions are strings on the wire, as in the Triton, KServe and TF Serving protocols, whose clients
will meet these documents under the same paths.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from contract.predictions import Prediction
from service.http.problems import problem_document
from service.models.repository import LoadedVersion, Repository
from service.serving.classifier import Classification, Outcome


class PredictionDocument(BaseModel):
    """One class a picture may show."""

    label: str
    index: int = Field(description="Position in the model's output.")
    synset: str | None = Field(None, description="WordNet id, where the model has one.")
    probability: float


class ErrorDocument(BaseModel):
    """Why one picture of several was not classified."""

    status: int
    code: str
    title: str
    detail: str


class ResultDocument(BaseModel):
    """One picture of several: its predictions or its own error."""

    predictions: list[PredictionDocument] | None = None
    error: ErrorDocument | None = None


class ClassifyDocument(BaseModel):
    """The answer to a request: `predictions` for one picture, `results` for a list."""

    model: str
    version: str
    predictions: list[PredictionDocument] | None = None
    results: list[ResultDocument] | None = None
    request_id: str


class ModelDocument(BaseModel):
    """One served version: what it is, what it takes, how good it is and where it runs."""

    name: str
    version: str
    ready: bool
    versions: list[str] = Field(description="Every version of this model that is served.")
    architecture: str
    n_classes: int
    input: dict[str, Any]
    preprocessing: dict[str, Any]
    metrics: dict[str, Any] | None
    parity: dict[str, Any] | None
    quantization: dict[str, Any] | None = Field(description="Of an int8 graph.")
    half_precision: dict[str, Any] | None = Field(description="Of a float16 graph.")
    calibration: dict[str, Any]
    provenance: dict[str, Any]
    created_at: str
    sha256: str = Field(description="Of the manifest, which lists the digest of every file.")
    graph_sha256: str
    provider: str
    provider_fallback: str | None = Field(
        description="Why a preferred execution provider was passed over; null if none was."
    )
    golden_difference: float = Field(
        description="Largest difference of a golden probability when this process started."
    )


class ModelListDocument(BaseModel):
    """Every served model."""

    models: list[str]
    default: str = Field(description="The model that /v1/classify uses.")
    details: list[ModelDocument]


class LabelDocument(BaseModel):
    """One class a model knows."""

    index: int
    name: str
    synset: str | None = None


class LabelsDocument(BaseModel):
    """The classes of a version, in the order of its output."""

    model: str
    version: str
    labels: list[LabelDocument]


class HealthDocument(BaseModel):
    """The answer of a health check that passes."""

    status: str


def prediction_fields(prediction: Prediction) -> dict[str, Any]:
    """Returns one prediction's members; `synset` only where there is one."""
    members: dict[str, Any] = {"label": prediction.label, "index": prediction.index}
    if prediction.synset is not None:
        members["synset"] = prediction.synset
    # Six decimals: finer than any tolerance here, and half the bytes.
    members["probability"] = round(prediction.probability, 6)
    return members


def classification_fields(answer: Classification, request_id: str, *, many: bool) -> dict[str, Any]:
    """Returns the members of a `ClassifyDocument`; the only outcome of a single one must be good."""
    members: dict[str, Any] = {
        "model": answer.manifest.name,
        "version": str(answer.manifest.version),
    }
    results = [_result_members(outcome, request_id) for outcome in answer.outcomes]
    if many:
        members["results"] = results
    else:
        members.update(results[0])
    members["request_id"] = request_id
    return members


def _result_members(outcome: Outcome, request_id: str) -> dict[str, Any]:
    if isinstance(outcome, list):
        return {"predictions": [prediction_fields(prediction) for prediction in outcome]}
    problem = problem_document(outcome, request_id)
    return {"error": {key: problem[key] for key in ("status", "code", "title", "detail")}}


def model_document(version: LoadedVersion, repository: Repository, *, ready: bool) -> ModelDocument:
    """Describes one served version."""
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
