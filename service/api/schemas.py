"""The response documents of the native dialect.

Versions are strings, as in the protocols of Triton, KServe and TF Serving.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    activation: str | None = Field(
        None,
        description="`sigmoid` if each label has a probability of its own, so that a picture may have "
        "several labels or none; `min_probability` is the threshold then. Absent if they sum to 1.",
    )
    predictions: list[PredictionDocument] | None = None
    results: list[ResultDocument] | None = None
    request_id: str


class ModelDocument(BaseModel):
    """One served version: its input, quality, origin and execution provider."""

    name: str
    version: str
    ready: bool
    versions: list[str] = Field(description="All loaded versions of this model.")
    architecture: str
    n_classes: int
    activation: str = Field(
        description="`softmax`: a picture has one label; `sigmoid`: any number of labels."
    )
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


class ModelStatusDocument(BaseModel):
    """What is served of one model, and what is not."""

    name: str
    ready: bool = Field(description="Whether the model can answer.")
    answers: str | None = Field(description="The version that answers; null if none can.")
    loaded: list[str]
    aliases: dict[str, str] = Field(description="Version by alias.")
    failed: dict[str, str] = Field(description="Why versions cannot be served, by version.")
    held: dict[str, str] = Field(
        description="Why versions do not become the latest by themselves, by version."
    )
    trouble: str | None = Field(
        description="Why nothing answers, or not the version that should; null if all is well."
    )


class ModelListDocument(BaseModel):
    """All models in the model repository."""

    models: list[str]
    default: str | None = Field(
        description="The model that /v1/classify uses; null if none is set."
    )
    details: list[ModelDocument] = Field(description="The version of each model that answers.")
    status: list[ModelStatusDocument]
    problems: list[str] = Field(description="Everything in the repository that needs attention.")


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
    if answer.manifest.activation == "sigmoid":
        members["activation"] = "sigmoid"
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


def status_documents(repository: Repository) -> list[ModelStatusDocument]:
    def texts(by_number: Mapping[int, str]) -> dict[str, str]:
        return {str(number): reason for number, reason in sorted(by_number.items())}

    return [
        ModelStatusDocument(
            name=name,
            ready=one.answer is not None,
            answers=None if one.answer is None else str(one.answer),
            loaded=[str(number) for number in one.load],
            aliases={alias: str(number) for alias, number in sorted(one.aliases.items())},
            failed=texts(one.failed),
            held=texts(one.held),
            trouble=one.trouble,
        )
        for name, one in repository.decision.models.items()
    ]


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
        activation=manifest.activation,
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
