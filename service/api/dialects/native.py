"""The native dialect: POST .../classify, and GET /v1/models... to describe what is served."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path
from pydantic import AfterValidator, BaseModel, Field
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from contract.repository.file import is_alias
from contract.versions import is_version_number
from service.api.dependencies import Dependencies, Deps, dependencies_of
from service.api.openapi import CLASSIFIED, ERRORS, FILES_BODY, JSON_BODY, RAW_BODY
from service.api.payload import (
    ClassifyOptions,
    check_headers,
    merge_options,
    parse_body,
    query_options,
    read_body,
)
from service.api.routes import openapi_parameters, parse
from service.api.schemas import (
    ClassifyDocument,
    HealthDocument,
    LabelDocument,
    LabelsDocument,
    ModelDocument,
    ModelListDocument,
    classification_fields,
    model_document,
    status_documents,
)
from service.http.peer import while_connected
from service.http.problems import code_of
from service.http.scope import client_of, request_id_of
from service.models.repository import LoadedVersion, Repository
from service.serving.classifier import Classification, StageTimes

hot = APIRouter(tags=["classify"])
router = APIRouter(
    tags=["models"], responses={status: ERRORS[status] for status in (404, 422, 503)}
)


def _number_or_alias(text: str) -> int | str:
    return int(text) if is_version_number(text) else text


def _check_version(text: str) -> str:
    if is_version_number(text) or is_alias(text):
        return text
    raise ValueError("must be the number of a version, or an alias")


_VERSION: Final = "The number of a loaded version, or an alias."
VersionName = Annotated[str, AfterValidator(_check_version), Path(description=_VERSION)]


class ModelPath(BaseModel):
    """Parameters of a path with a model."""

    name: str


class VersionPath(ModelPath):
    """Parameters of a path with a version."""

    version: Annotated[str, AfterValidator(_check_version)] = Field(description=_VERSION)


_REQUEST_BODY: Final = {
    "required": True,
    "content": {
        # Also with the media type of the picture. Client generators know no body of type image/*.
        "application/octet-stream": RAW_BODY,
        "multipart/form-data": FILES_BODY,
        "application/json": JSON_BODY,
    },
}


def _described(path: type[BaseModel] | None = None) -> dict[str, Any]:
    in_path = openapi_parameters("path", path) if path else []
    return {
        "response_model": ClassifyDocument,
        "responses": {200: CLASSIFIED, **ERRORS},
        "openapi_extra": {
            "parameters": in_path + openapi_parameters("query", ClassifyOptions),
            "requestBody": _REQUEST_BODY,
        },
    }


@hot.post("/v1/classify", summary="Classify with the default model", **_described())
async def classify(request: Request) -> Response:
    """Classifies one or several pictures with the default model; returns the top-k predictions."""
    return await _classify(request)


@hot.post("/v1/models/{name}/classify", summary="Classify with a model", **_described(ModelPath))
async def classify_with_model(request: Request) -> Response:
    """Like `/v1/classify`, with the named model."""
    return await _classify(request, request.path_params["name"])


@hot.post(
    "/v1/models/{name}/versions/{version}/classify",
    summary="Classify with a version of a model",
    **_described(VersionPath),
)
async def classify_with_version(request: Request) -> Response:
    """Like `/v1/classify`, with one version of the named model, by number or alias."""
    path = parse(VersionPath, request.path_params)
    return await _classify(request, path.name, _number_or_alias(path.version))


async def _classify(
    request: Request, name: str | None = None, version: int | str | None = None
) -> Response:
    deps = dependencies_of(request)
    options = query_options(request.scope["query_string"])
    client = client_of(request.scope)

    # Everything that can be refused without the body is refused before the body is read.
    with deps.classifier.active.find(name, version) as served:
        check_headers(request)
        deadline = deps.deadlines.of(request)

        with deps.admission.slot(client) as slot:
            deps.admission.check_wait(
                served.backend.expected_s(served.version, client), deadline.remaining_s()
            )
            body = await read_body(request, slot, deps.body_limits)
            received_s = deadline.elapsed_s()
            kind = request.headers.get("content-type", "")
            upload = await parse_body(body, kind, deps.body_limits)
            slot.add_images(len(upload.images))

            options = merge_options(options, upload.options)
            work = deps.classifier.classify(
                served,
                upload.images,
                deadline.at_s,
                top_k=options.top_k,
                min_probability=options.min_probability,
                peer=client,
            )
            answer = await while_connected(request, work)

    _count(deps, answer, received_s)
    if not upload.as_list and isinstance(answer.outcomes[0], Exception):
        raise answer.outcomes[0]
    members = classification_fields(answer, request_id_of(request.scope), as_list=upload.as_list)
    return Response(
        to_json(members),
        headers={"Server-Timing": _server_timing(answer, received_s)},
        media_type="application/json",
    )


def _count(deps: Dependencies, answer: Classification, received_s: float) -> None:
    manifest, times = answer.manifest, answer.times
    deps.metrics.count_answer(
        (manifest.name, manifest.version),
        [code_of(one) if isinstance(one, Exception) else "ok" for one in answer.outcomes],
        # Only if at least one picture reached the engine.
        _stages(times, received_s) if times.batch_size else (),
    )


def _stages(times: StageTimes, received_s: float) -> Iterable[tuple[str, float]]:
    return (
        ("receive", received_s),
        ("decode", times.decode_s),
        ("preprocess", times.preprocess_s),
        ("queue", times.queue_s),
        ("infer", times.infer_s),
        ("rank", times.rank_s),
    )


def _server_timing(answer: Classification, received_s: float) -> str:
    stages = _stages(answer.times, received_s)
    durations = [f"{stage};dur={seconds * 1e3:.2f}" for stage, seconds in stages]
    return ", ".join((*durations, f"batch;desc={answer.times.batch_size}"))


# Of documents that rarely change, so that clients need not fetch them again.
_CONDITIONAL: Final[dict[str, Any]] = {
    "responses": {304: {"description": "What `If-None-Match` names has not changed."}}
}


@router.get(
    "/v1/models", summary="List the models", response_model=ModelListDocument, **_CONDITIONAL
)
async def list_models(request: Request, deps: Deps) -> Response:
    """Lists every model: the version that answers, and what cannot be served, with the reason."""
    repository = deps.classifier.active.repository
    answering = [name for name, one in repository.decision.models.items() if one.answer is not None]
    # Whatever is not ready about a model that can answer is so for all of them.
    ready = bool(answering) and deps.not_ready(answering[0]) is None

    def write() -> str:
        details = [
            model_document(repository.get(name), repository, ready=ready) for name in answering
        ]
        return ModelListDocument(
            models=list(repository.decision.models),
            default=repository.default_name,
            details=details,
            status=status_documents(repository),
            problems=repository.problems,
        ).model_dump_json()

    return deps.documents.response(request, repository, ("models", ready), write)


@router.get(
    "/v1/models/{name}", summary="Describe a model", response_model=ModelDocument, **_CONDITIONAL
)
async def describe_model(request: Request, name: str, deps: Deps) -> Response:
    """Describes the version of a model that answers."""
    return _describe(request, name, None, deps)


@router.get("/v1/models/{name}/ready", summary="Readiness of a model")
async def model_ready(name: str, deps: Deps) -> HealthDocument:
    """Succeeds if the model can answer; a probe for a service with several models."""
    reason = deps.not_ready(name)
    if reason is not None:
        raise reason
    return HealthDocument(status="ready")


@router.get(
    "/v1/models/{name}/versions/{version}",
    summary="Describe a version",
    response_model=ModelDocument,
    **_CONDITIONAL,
)
async def describe_version(
    request: Request, name: str, version: VersionName, deps: Deps
) -> Response:
    """Describes one loaded version, by number or alias."""
    return _describe(request, name, version, deps)


@router.get(
    "/v1/models/{name}/labels",
    summary="List a model's labels",
    response_model=LabelsDocument,
    **_CONDITIONAL,
)
async def list_labels(request: Request, name: str, deps: Deps) -> Response:
    """Lists the classes of the version that answers, in the order of the model's output."""
    return _labels(request, name, None, deps)


@router.get(
    "/v1/models/{name}/versions/{version}/labels",
    summary="List a version's labels",
    response_model=LabelsDocument,
    **_CONDITIONAL,
)
async def list_version_labels(
    request: Request, name: str, version: VersionName, deps: Deps
) -> Response:
    """Lists the classes of one loaded version, in the order of the model's output."""
    return _labels(request, name, version, deps)


def _get(repository: Repository, name: str, version: str | None) -> LoadedVersion:
    return repository.get(name, None if version is None else _number_or_alias(version))


def _describe(request: Request, name: str, version: str | None, deps: Dependencies) -> Response:
    repository = deps.classifier.active.repository
    found = _get(repository, name, version)
    ready = deps.not_ready(name) is None

    def write() -> str:
        return model_document(found, repository, ready=ready).model_dump_json()

    return deps.documents.response(request, repository, ("model", found.key, ready), write)


def _labels(request: Request, name: str, version: str | None, deps: Dependencies) -> Response:
    repository = deps.classifier.active.repository
    manifest = _get(repository, name, version).manifest

    def write() -> str:
        labels = [LabelDocument(**label.model_dump()) for label in manifest.labels]
        return LabelsDocument(
            model=manifest.name, version=str(manifest.version), labels=labels
        ).model_dump_json(exclude_none=True)

    return deps.documents.response(
        request, repository, ("labels", manifest.name, manifest.version), write
    )
