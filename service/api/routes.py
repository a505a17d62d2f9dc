"""Plain routes: endpoints for pictures that skip FastAPI's routing and stay in its OpenAPI document.

FastAPI takes 48 us to resolve a route with its dependencies and parameters, Starlette's router 5 us.
So every dialect has two routers. `router` holds ordinary FastAPI routes. `hot` holds the routes that
receive pictures: their handlers take only the request, and read what they need with `parse`.
`plain_routes` serves these before FastAPI, which also has them, to describe them and to answer 404
and 405.
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

# The OpenAPI description of every error status.
ERRORS: Final[dict[int | str, dict[str, Any]]] = {
    status: {
        "description": ", ".join(
            code for code, problem in PROBLEMS.items() if problem.status == status
        ),
        "content": {MEDIA_TYPE: {"schema": ProblemDocument.model_json_schema()}},
    }
    for status in (400, 404, 408, 413, 415, 422, 431, 500, 503, 504)
}


class PlainRoute(Route):
    """A Starlette route for a FastAPI route whose handler takes only the request."""

    def __init__(self, route: APIRoute) -> None:
        super().__init__(route.path, route.endpoint)
        self.methods = route.methods

        async def respond(scope: Scope, receive: Receive, send: Send) -> None:
            response = await route.endpoint(Request(scope, receive))
            await response(scope, receive, send)

        # In place of Starlette's wrapper, which looks for exception handlers: the edge has them all.
        self.app = respond

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["method"] not in (self.methods or ()):  # FastAPI has another route or answers 405
            return Match.NONE, {}
        return super().matches(scope)


def plain_routes(routers: Iterable[APIRouter]) -> list[BaseRoute]:
    return [
        PlainRoute(route)
        for router in routers
        for route in router.routes
        if isinstance(route, APIRoute)
    ]


def openapi_parameters(
    where: Literal["path", "query"], model: type[BaseModel]
) -> list[dict[str, Any]]:
    """Describes the fields of a model as OpenAPI parameters; `parse` reads them."""
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


def parse(model: type[Model], values: Mapping[str, Any]) -> Model:
    """Parses parameters that a client sent.

    Raises:
        InvalidParameter: one is unknown or out of range. The message names it, but not its value.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        if first["type"] == "extra_forbidden":
            message = "unknown query parameter; see /docs for the known ones"
        else:
            message = f"{first['loc'][0]}: {first['msg']}"
        raise InvalidParameter(message) from error
