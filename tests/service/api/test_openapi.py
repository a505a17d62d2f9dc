"""The OpenAPI document: shared schemas, and examples that are true."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.api.schemas import (
    ClassifyDocument,
    LabelsDocument,
    ModelDocument,
    ModelListDocument,
)
from service.http.problems import MEDIA_TYPE, PROBLEMS, ProblemDocument

MODELS_DIR = Path(__file__).parents[3] / "models"


@pytest.fixture
def document(client) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


def responses(document: dict[str, Any], media_type: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each response of this type, by its status."""
    for operations in document["paths"].values():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                if media_type in response.get("content", {}):
                    yield status, response["content"][media_type]


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for value in part.values():
            yield from references(value)
    elif isinstance(part, list):
        for value in part:
            yield from references(value)


def test_openapi_every_reference_leads_to_a_schema(document):
    found = set(references(document))

    assert "#/components/schemas/ProblemDocument" in found
    assert found <= {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}


def test_openapi_operations_have_short_names(document):
    names = [
        operation["operationId"]
        for operations in document["paths"].values()
        for operation in operations.values()
    ]

    assert names[:3] == ["classify", "classify_with_model", "classify_with_version"]
    assert len(set(names)) == len(names)
    assert all("_v1_" not in name for name in names)


def test_openapi_errors_share_one_schema(document):
    schemas = [content["schema"] for _, content in responses(document, MEDIA_TYPE)]

    assert len(schemas) > 20
    assert all(one == {"$ref": "#/components/schemas/ProblemDocument"} for one in schemas)
    problem = document["components"]["schemas"]["ProblemDocument"]
    assert problem["properties"].keys() == ProblemDocument.model_fields.keys()


def test_openapi_every_public_error_has_an_example(document):
    codes = set()
    for status, content in responses(document, MEDIA_TYPE):
        for code, example in content["examples"].items():
            shown = ProblemDocument.model_validate(example["value"])
            assert (shown.code, str(shown.status)) == (code, status)
            codes.add(code)

    public = {code for code, problem in PROBLEMS.items() if not problem.admin}
    assert codes == public - {"method_not_allowed"}


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/{name}/ready", "/readyz"])
def test_openapi_what_may_not_be_ready_says_so(document, path):
    assert "503" in document["paths"][path]["get"]["responses"]


def test_openapi_answers_have_examples(document):
    content = document["paths"]["/v1/classify"]["post"]["responses"]["200"]["content"]

    examples = content["application/json"]["examples"]
    assert examples.keys() == {"one", "several"}
    for example in examples.values():
        shown = ClassifyDocument.model_validate(example["value"])
        assert (shown.predictions is None) != (shown.results is None)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/v1/models", ModelListDocument),
        ("/v1/models/{name}", ModelDocument),
        ("/v1/models/{name}/versions/{version}", ModelDocument),
        ("/v1/models/{name}/labels", LabelsDocument),
        ("/v1/models/{name}/versions/{version}/labels", LabelsDocument),
    ],
)
def test_openapi_documents_about_models_have_examples(document, path, kind):
    responses = document["paths"][path]["get"]["responses"]
    content = responses["200"]["content"]["application/json"]

    assert content["schema"] == {"$ref": f"#/components/schemas/{kind.__name__}"}
    shown = kind.model_validate(content["example"])
    assert shown.model_dump(exclude_unset=True) == content["example"]
    assert "304" in responses


def test_openapi_example_of_a_model_is_the_committed_one(document):
    path = document["paths"]["/v1/models/{name}"]["get"]
    shown = path["responses"]["200"]["content"]["application/json"]["example"]

    manifest = json.loads((MODELS_DIR / "efficientnet_lite0/2/manifest.json").read_text())
    assert shown["architecture"] == manifest["architecture"]
    assert shown["input"] == manifest["graph"]["input"]
    assert shown["preprocessing"] == manifest["preprocessing"]
    assert shown["n_classes"] == len(manifest["labels"])


def test_openapi_example_requests_are_answered(client, document):
    body = document["paths"]["/v1/classify"]["post"]["requestBody"]["content"]

    for example in body["application/json"]["examples"].values():
        response = client.post("/v1/classify", json=example["value"])
        assert response.status_code == 200
        labels = [
            one["predictions"][0]["label"]
            for one in response.json().get("results", [response.json()])
        ]
        assert set(labels) == {"red"}
