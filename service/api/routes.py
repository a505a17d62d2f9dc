"""What the routes of every dialect share: plain ones for pictures, described by FastAPI.

FastAPI resolves a route, its dependencies and its parameters anew for each request, which takes 48 us
where Starlette's router takes 5. So a dialect has two routers. In `router` are ordinary FastAPI
routes. In `hot` are the routes that pictures come through: each handler takes the request and nothing
else, and reads what it needs with `read`. `in_front` serves these ahead of FastAPI, which has them too,
for the API's description and for what is refused (404, 405).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, TypeVar

from fastapi import APIRouter
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Receive, Scope, Send

from service.errors import InvalidParameter
from service.http.problems import MEDIA_TYPE, PROBLEMS, ProblemDocument

Model = TypeVar("Model", bound=BaseModel)

ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    status: {
        "description": ", ".join(
            code for code, problem in PROBLEMS.items() if problem.status == status
        ),
        "content": {MEDIA_TYPE: {"schema": ProblemDocument.model_json_schema()}},
    }
    for status in (400, 404, 408, 413, 415, 422, 431, 500, 503, 504)
}
"""How each status that is an error is described."""


class PlainRoute(Route):
    """A route of Starlette's for a handler of FastAPI's that takes the request alone."""

    def __init__(self, route: APIRoute) -> None:
        super().__init__(route.path, route.endpoint)
        self.methods = route.methods

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            response = await route.endpoint(Request(scope, receive))
            await response(scope, receive, send)

        self.app = answer  # Starlette's would look for exception handlers; the edge has them all

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["method"] not in (self.methods or ()):  # FastAPI's to answer or to refuse
            return Match.NONE, {}
        return super().matches(scope)


def in_front(routers: Iterable[APIRouter]) -> list[BaseRoute]:
    """Returns the plain routes of these routers."""
    return [
        PlainRoute(route)
        for router in routers
        for route in router.routes
        if isinstance(route, APIRoute)
    ]


def parameters(where: Literal["path", "query"], model: type[BaseModel]) -> list[dict[str, Any]]:
    """Describes the fields of a model as OpenAPI parameters; `read` is the other half."""
    schema = model.model_json_schema()
    return [
        {
            "name": name,
            "in": where,
            "required": name in schema.get("required", ()),
            "schema": {key: value for key, value in field.items() if value is not None},
            **({"description": field["description"]} if "description" in field else {}),
        }
        for name, field in schema["properties"].items()
    ]


def read(model: type[Model], values: Mapping[str, Any]) -> Model:
    """Reads what a client gave.

    Raises:
        InvalidParameter: one is unknown or outside its range; says which, never what was sent.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        if first["type"] == "extra_forbidden":
            message = "an unknown query parameter was given; see /docs for the known ones"
        else:
            message = f"{first['loc'][0]}: {first['msg']}"
        raise InvalidParameter(message) from error
