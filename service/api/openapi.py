"""The OpenAPI description of what all routes share: error responses, JSON bodies, and examples."""

from __future__ import annotations

from typing import Any, Final

from fastapi.routing import APIRoute

from service.http.problems import MEDIA_TYPE, PROBLEMS, ProblemDocument

_SCHEMAS: Final = "#/components/schemas/"
_REQUEST_ID: Final = "5f0c9d3a1b7e4826"

# A PNG of one red pixel.
_RED_PIXEL: Final = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"
)

_CLASSIFY_REQUEST: Final[dict[str, Any]] = {
    "title": "ClassifyRequest",
    "description": "One picture (`image`) or several (`images`), as base64, and the options.",
    "type": "object",
    "properties": {
        "image": {"type": "string", "contentEncoding": "base64"},
        "images": {"type": "array", "items": {"type": "string", "contentEncoding": "base64"}},
        "top_k": {"type": "integer", "minimum": 1},
        "min_probability": {"type": "number", "minimum": 0, "maximum": 1},
    },
}

_BINARY: Final = {"type": "string", "format": "binary"}
_CLASSIFY_FILES: Final[dict[str, Any]] = {
    "title": "ClassifyFiles",
    "description": "One or several pictures, under any names.",
    "type": "object",
    "properties": {"image": {"type": "array", "items": _BINARY}},
}

RAW_BODY: Final[dict[str, Any]] = {"schema": _BINARY}
FILES_BODY: Final[dict[str, Any]] = {"schema": {"$ref": f"{_SCHEMAS}ClassifyFiles"}}
JSON_BODY: Final[dict[str, Any]] = {
    "schema": {"$ref": f"{_SCHEMAS}ClassifyRequest"},
    "examples": {
        "one": {"summary": "One picture", "value": {"image": _RED_PIXEL}},
        "several": {
            "summary": "Several pictures, one class each",
            "value": {"images": [_RED_PIXEL, _RED_PIXEL], "top_k": 1},
        },
    },
}

# What efficientnet_lite0/2 answers to examples/cat.jpg, and to that and a file that is no picture.
_CAT: Final = {
    "label": "Egyptian cat",
    "index": 285,
    "synset": "n02124075",
    "probability": 0.792007,
}
_TABBY: Final = {"label": "tabby", "index": 281, "synset": "n02123045", "probability": 0.07893}
_ANSWERED: Final = {"model": "efficientnet_lite0", "version": "2", "request_id": _REQUEST_ID}
_NO_PICTURE: Final = {
    "status": 415,
    "code": "unsupported_media_type",
    "title": PROBLEMS["unsupported_media_type"].title,
    "detail": PROBLEMS["unsupported_media_type"].title,
}
CLASSIFIED: Final[dict[str, Any]] = {
    "content": {
        "application/json": {
            "examples": {
                "one": {
                    "summary": "One picture, top_k=2",
                    "value": {**_ANSWERED, "predictions": [_CAT, _TABBY]},
                },
                "several": {
                    "summary": "Two files, top_k=1; the second is no picture",
                    "value": {
                        **_ANSWERED,
                        "results": [{"predictions": [_CAT]}, {"error": _NO_PICTURE}],
                    },
                },
            }
        }
    }
}


def _problem(code: str) -> dict[str, Any]:
    problem = PROBLEMS[code]
    document = ProblemDocument(
        title=problem.title,
        status=problem.status,
        code=code,
        detail=problem.title,
        request_id=_REQUEST_ID,
    )
    return {"summary": problem.title, "value": document.model_dump()}


def _error(status: int) -> dict[str, Any]:
    codes = [
        code for code, problem in PROBLEMS.items() if problem.status == status and not problem.admin
    ]
    content = {
        "schema": {"$ref": f"{_SCHEMAS}ProblemDocument"},
        "examples": {code: _problem(code) for code in codes},
    }
    return {"description": ", ".join(codes), "content": {MEDIA_TYPE: content}}


ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    status: _error(status) for status in (400, 404, 408, 413, 415, 422, 431, 500, 503, 504)
}
"""The response of every error status."""


def operation_id(route: APIRoute) -> str:
    """The name of an operation, after which generated clients name their functions."""
    return route.name


def add_shared_schemas(document: dict[str, Any]) -> None:
    """Adds the schemas to which the parts above refer to an OpenAPI document."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas["ClassifyFiles"] = _CLASSIFY_FILES
    schemas["ClassifyRequest"] = _CLASSIFY_REQUEST
    schemas["ProblemDocument"] = ProblemDocument.model_json_schema()
