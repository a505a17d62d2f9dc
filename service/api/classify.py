"""POST .../classify: pictures in, labelled probabilities out."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Annotated, Any, Final

from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from contract.images import DECODERS
from service.api import problems
from service.api.payload import (
    Options,
    Upload,
    check_headers,
    merge_options,
    parse_body,
    read_body,
)
from service.api.problems import ProblemDocument, code_of
from service.api.schemas import ClassifyDocument, classify_members
from service.api.state import Parts, PartsDep, RequestIdDep
from service.classifier import Answer, Choice

router = APIRouter(tags=["classify"])

# Parsing a body below this size costs less than handing it to another thread.
_PARSE_INLINE_BYTES: Final = 65_536

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
    return await _classify(request, parts, request_id, options, Choice())


@router.post("/v1/models/{name}/classify", summary="Classify with a model", **_DOCUMENTED)
async def classify_with_model(
    request: Request, name: str, options: OptionsQuery, parts: PartsDep, request_id: RequestIdDep
) -> JSONResponse:
    """As `/v1/classify`, with the newest served version of the named model."""
    return await _classify(request, parts, request_id, options, Choice(name))


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
    return await _classify(request, parts, request_id, options, Choice(name, version))


async def _classify(
    request: Request, parts: Parts, request_id: str, query: Options, which: Choice
) -> JSONResponse:
    parts.classifier.find(which)
    check_headers(request)
    with parts.admission.slot() as slot:
        body = await read_body(request, slot, parts.body_limits)
        upload = await _parse(parts, body, request.headers.get("content-type", ""))
        slot.add_images(len(upload.images))
        options = merge_options(query, upload.options)
        choice = Choice(which.model, which.version, options.top_k, options.min_probability)
        deadline_s = parts.clock() + parts.request_timeout_s
        work = parts.classifier.classify(upload.images, choice, deadline_s)
        answer = await _while_connected(request, work)
    _count(parts, answer)
    if not upload.many and isinstance(answer.outcomes[0], Exception):
        raise answer.outcomes[0]
    members = classify_members(answer, request_id, many=upload.many)
    return JSONResponse(members, headers={"Server-Timing": _server_timing(answer)})


async def _while_connected(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer:
    """Waits for the work, or drops it as soon as nobody is left to receive its answer."""
    answer, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait((answer, gone), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return answer.result()
    finally:
        answer.cancel()
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _parse(parts: Parts, body: bytes, content_type: str) -> Upload:
    if len(body) < _PARSE_INLINE_BYTES or not content_type.lower().startswith(
        ("multipart", "application/j")
    ):
        return parse_body(body, content_type, parts.body_limits)
    return await asyncio.get_running_loop().run_in_executor(
        parts.prepare_pool, parse_body, body, content_type, parts.body_limits
    )


def _count(parts: Parts, answer: Answer) -> None:
    name, times = answer.manifest.name, answer.times
    for outcome in answer.outcomes:
        label = code_of(outcome) if isinstance(outcome, Exception) else "ok"
        parts.metrics.images.labels(name, label).inc()
    if times.batch_size:
        stages = {"prepare": times.prepare_s, "queue": times.queue_s, "infer": times.infer_s}
        for stage, seconds in stages.items():
            parts.metrics.stage_seconds.labels(name, stage).observe(seconds)


def _server_timing(answer: Answer) -> str:
    times = answer.times
    return (
        f"prepare;dur={times.prepare_s * 1e3:.2f}, queue;dur={times.queue_s * 1e3:.2f}, "
        f"infer;dur={times.infer_s * 1e3:.2f}, batch;desc={times.batch_size}"
    )
