"""POST .../classify: pictures in, labelled probabilities out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import JSONResponse

from contract.images.decoding import DECODERS
from service.api.parts import Parts, PartsDep, RequestIdDep
from service.api.payload import (
    Options,
    check_headers,
    merge_options,
    parse_body,
    read_body,
)
from service.api.schemas import ClassifyDocument, classify_members
from service.http import problems
from service.http.peer import while_connected
from service.http.problems import ProblemDocument, code_of
from service.serving.classifier import Answer, Choice, StageTimes

router = APIRouter(tags=["classify"])

_BINARY: Final = {"schema": {"type": "string", "format": "binary"}}
_REQUEST_BODY: Final = {
    "required": True,
    "content": {
        **{decoder.media_type: _BINARY for decoder in DECODERS},
        "application/octet-stream": _BINARY,
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {
                    "image": {"type": "array", "items": {"type": "string", "format": "binary"}}
                },
                "additionalProperties": {"type": "string", "format": "binary"},
            }
        },
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {
                    "image": {"type": "string", "contentEncoding": "base64"},
                    "images": {
                        "type": "array",
                        "items": {"type": "string", "contentEncoding": "base64"},
                    },
                    "top_k": {"type": "integer", "minimum": 1},
                    "min_probability": {"type": "number", "minimum": 0, "maximum": 1},
                },
            }
        },
    },
}
_STATUSES: Final = (400, 404, 408, 413, 415, 422, 431, 500, 503, 504)
ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    status: {
        "description": ", ".join(
            code for code, problem in problems.PROBLEMS.items() if problem.status == status
        ),
        "content": {problems.MEDIA_TYPE: {"schema": ProblemDocument.model_json_schema()}},
    }
    for status in _STATUSES
}

OptionsQuery = Annotated[Options, Query()]
VersionPath = Annotated[int, Path(ge=1, description="The number of a served version.")]
_DOCUMENTED: Final[dict[str, Any]] = {
    "response_model": ClassifyDocument,
    "responses": ERRORS,
    "openapi_extra": {"requestBody": _REQUEST_BODY},
}


@router.post("/v1/classify", summary="Classify with the default model", **_DOCUMENTED)
async def classify(
    request: Request, options: OptionsQuery, parts: PartsDep, request_id: RequestIdDep
) -> JSONResponse:
    """Answers one picture, or several, with the default model's top-k predictions."""
    return await classify_upload(request, parts, request_id, options, Choice())


@router.post("/v1/models/{name}/classify", summary="Classify with a model", **_DOCUMENTED)
async def classify_with_model(
    request: Request, name: str, options: OptionsQuery, parts: PartsDep, request_id: RequestIdDep
) -> JSONResponse:
    """As `/v1/classify`, with the newest served version of the named model."""
    return await classify_upload(request, parts, request_id, options, Choice(name))


@router.post(
    "/v1/models/{name}/versions/{version}/classify",
    summary="Classify with a version of a model",
    **_DOCUMENTED,
)
async def classify_with_version(
    request: Request,
    name: str,
    version: VersionPath,
    options: OptionsQuery,
    parts: PartsDep,
    request_id: RequestIdDep,
) -> JSONResponse:
    """As `/v1/classify`, with one particular version."""
    return await classify_upload(request, parts, request_id, options, Choice(name, version))


async def classify_upload(
    request: Request, parts: Parts, request_id: str, query: Options, which: Choice
) -> JSONResponse:
    """Answers the pictures of one request; every way to classify ends here.

    Args:
        request: its body has not been read.
        parts: of the application.
        request_id: goes into the answer.
        query: the options given beside the body.
        which: the model; what is wanted of its answer is taken from the options.

    Raises:
        ServiceError, ImageError: the request, or its only picture, is not answered, and why.
    """
    version = parts.classifier.find(which)
    check_headers(request)
    deadline = parts.deadlines.of(request)
    with parts.admission.slot() as slot:
        parts.admission.check_wait(parts.classifier.expected_s(version), deadline.left_s())
        body = await read_body(request, slot, parts.body_limits)
        received_s = deadline.elapsed_s()
        kind = request.headers.get("content-type", "")
        upload = await parse_body(body, kind, parts.body_limits)
        slot.add_images(len(upload.images))
        options = merge_options(query, upload.options)
        choice = Choice(which.model, which.version, options.top_k, options.min_probability)
        work = parts.classifier.classify(upload.images, choice, deadline.at_s)
        answer = await while_connected(request, work)
    _count(parts, answer, received_s)
    if not upload.many and isinstance(answer.outcomes[0], Exception):
        raise answer.outcomes[0]
    members = classify_members(answer, request_id, many=upload.many)
    return JSONResponse(members, headers={"Server-Timing": _server_timing(answer, received_s)})


def _count(parts: Parts, answer: Answer, received_s: float) -> None:
    name, times, metrics = answer.manifest.name, answer.times, parts.metrics
    for outcome in answer.outcomes:
        label = code_of(outcome) if isinstance(outcome, Exception) else "ok"
        metrics.images(name, label).inc()
    if times.batch_size:
        for stage, seconds in _stages(times, received_s):
            metrics.stage_seconds(name, stage).observe(seconds)


def _stages(times: StageTimes, received_s: float) -> Iterable[tuple[str, float]]:
    return (
        ("receive", received_s),
        ("decode", times.decode_s),
        ("preprocess", times.preprocess_s),
        ("queue", times.queue_s),
        ("infer", times.infer_s),
        ("rank", times.rank_s),
    )


def _server_timing(answer: Answer, received_s: float) -> str:
    stages = _stages(answer.times, received_s)
    durations = [f"{stage};dur={seconds * 1e3:.2f}" for stage, seconds in stages]
    return ", ".join((*durations, f"batch;desc={answer.times.batch_size}"))
