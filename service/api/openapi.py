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


# What the service says of efficientnet_lite0/2; long texts are cut.
_LABELS: Final = {
    "model": "efficientnet_lite0",
    "version": "2",
    "labels": [
        {"index": 0, "name": "tench", "synset": "n01440764"},
        {"index": 1, "name": "goldfish", "synset": "n01443537"},
    ],
}
_MODEL: Final[dict[str, Any]] = {
    "name": "efficientnet_lite0",
    "version": "2",
    "ready": True,
    "versions": ["2"],
    "architecture": "tf_efficientnet_lite0",
    "n_classes": 1000,
    "activation": "softmax",
    "input": {"name": "image", "dtype": "uint8", "layout": "NHWC", "shape": [None, 224, 224, 3]},
    "preprocessing": {
        "resize_mode": "shortest_side",
        "resize_size_px": 256,
        "crop_size_px": 224,
        "interpolation": "bicubic",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "in_graph": True,
    },
    "metrics": {"top1_percent": 87.333, "top5_percent": 97.0, "n_images": 300},
    "parity": {"top1_agreement_percent": 98.667, "n_images": 300},
    "quantization": {"weights": "int8", "activations": "uint8", "n_calibration_images": 512},
    "half_precision": None,
    "calibration": {"temperature": 1.0, "conformal": []},
    "provenance": {"license": "Apache-2.0", "seed": 0},
    "created_at": "2026-11-29T09:59:44Z",
    "sha256": "cc2d68ab4258228faeb9c0498d121b6a550f86398ed111fdf5b19ee3af8c4292",
    "graph_sha256": "391ec9530985a37336f45425f2d53216863b4f5fb2f54ac0440ce1139a166dd3",
    "provider": "cpu",
    "provider_fallback": None,
    "golden_difference": 0.01993940386199955,
}
_MODELS: Final[dict[str, Any]] = {
    "models": ["efficientnet_lite0"],
    "default": "efficientnet_lite0",
    "details": [_MODEL],
    "status": [
        {
            "name": "efficientnet_lite0",
            "ready": True,
            "answers": "2",
            "loaded": ["2"],
            "aliases": {"stable": "2"},
            "failed": {},
            "held": {},
            "trouble": None,
        }
    ],
    "problems": [],
}


_EXAMPLES: Final = {
    f"{_SCHEMAS}{name}": example
    for name, example in (
        ("LabelsDocument", _LABELS),
        ("ModelDocument", _MODEL),
        ("ModelListDocument", _MODELS),
    )
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


def add_shared_parts(document: dict[str, Any]) -> None:
    """Adds the schemas to which the parts above refer to an OpenAPI document, and examples with nulls.

    FastAPI leaves out every null of what a route declares.
    """
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas["ClassifyFiles"] = _CLASSIFY_FILES
    schemas["ClassifyRequest"] = _CLASSIFY_REQUEST
    schemas["ProblemDocument"] = ProblemDocument.model_json_schema()
    for operations in document.get("paths", {}).values():
        for operation in operations.values():
            for response in operation["responses"].values():
                for content in response.get("content", {}).values():
                    example = _EXAMPLES.get(content.get("schema", {}).get("$ref", ""))
                    if example is not None:
                        content["example"] = example
