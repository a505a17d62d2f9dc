"""GET /v1/models...: what is being served."""

from __future__ import annotations

from fastapi import APIRouter

from service.api.dialects.native import ERRORS, VersionPath
from service.api.parts import Parts, PartsDep
from service.api.schemas import (
    LabelDocument,
    LabelsDocument,
    ModelDocument,
    ModelListDocument,
    model_document,
)
from service.models.repository import LoadedVersion

router = APIRouter(tags=["models"], responses={404: ERRORS[404], 422: ERRORS[422]})


@router.get("/v1/models", summary="List the served models")
async def list_models(parts: PartsDep) -> ModelListDocument:
    """Lists every served model and describes the newest version of each."""
    repository = parts.classifier.serving.answerer.repository
    return ModelListDocument(
        models=list(repository.models),
        default=repository.default_name,
        details=[_describe(repository.get(name), parts) for name in repository.models],
    )


@router.get("/v1/models/{name}", summary="Describe a model")
async def describe_model(name: str, parts: PartsDep) -> ModelDocument:
    """Describes the newest served version of a model."""
    return _describe(parts.classifier.serving.answerer.repository.get(name), parts)


@router.get("/v1/models/{name}/versions/{version}", summary="Describe a version")
async def describe_version(name: str, version: VersionPath, parts: PartsDep) -> ModelDocument:
    """Describes one served version."""
    return _describe(parts.classifier.serving.answerer.repository.get(name, version), parts)


@router.get(
    "/v1/models/{name}/labels", summary="List a model's labels", response_model_exclude_none=True
)
async def list_labels(name: str, parts: PartsDep) -> LabelsDocument:
    """Lists the classes of the newest served version, in the order of its output."""
    return _labels(parts.classifier.serving.answerer.repository.get(name))


@router.get(
    "/v1/models/{name}/versions/{version}/labels",
    summary="List a version's labels",
    response_model_exclude_none=True,
)
async def list_version_labels(name: str, version: VersionPath, parts: PartsDep) -> LabelsDocument:
    """Lists the classes of one served version, in the order of its output."""
    return _labels(parts.classifier.serving.answerer.repository.get(name, version))


def _describe(version: LoadedVersion, parts: Parts) -> ModelDocument:
    repository = parts.classifier.serving.answerer.repository
    return model_document(version, repository, ready=parts.not_ready() is None)


def _labels(version: LoadedVersion) -> LabelsDocument:
    manifest = version.manifest
    labels = [LabelDocument(**label.model_dump()) for label in manifest.labels]
    return LabelsDocument(model=manifest.name, version=str(manifest.version), labels=labels)
