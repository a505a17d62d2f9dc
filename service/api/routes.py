"""Hot routes: endpoints for pictures that skip FastAPI's routing and stay in its OpenAPI document.

FastAPI takes 48 us to resolve a route with its dependencies and parameters, Starlette's router 5 us.
So every dialect has two routers. `router` holds ordinary FastAPI routes. `hot` holds the routes that
receive pictures: their handlers take only the request, and read what they need with `parse`.
`HotRoutes` serves these before FastAPI, which also has them, to describe them and to answer 404
and 405.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, TypeVar

from fastapi import APIRouter
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import InvalidParameter, Overloaded
from service.http.edge import QUIET_ROUTES
from service.http.problems import broken_rule
from service.http.scope import client_of
from service.http.shedding import PacedRefusals
from service.http.turns import FairTurns
from service.system.pacing import Allowance

Model = TypeVar("Model", bound=BaseModel)

# Requests with pictures that begin in one turn of the event loop. A refusal takes 0.1 to 0.2 ms.
_PICTURES_AT_ONCE: Final = 16
# All other requests: 0.2 to 0.4 ms each, so that a flood of them gets a fifth of the event loop.
_OTHERS_AT_ONCE: Final = 4
_OTHERS_BURST: Final = 100
_OTHERS_PER_S: Final = 500


class HotRoutes:
    """Serves routes whose handlers take only the request, and passes other requests on.

    Args:
        routers: with the routes.
        other: the application for all other requests, also those with a method that a route lacks.
        refusals: when those of overloads are sent.
    """

    def __init__(
        self,
        routers: Iterable[APIRouter],
        other: ASGIApp,
        refusals: PacedRefusals,
    ) -> None:
        self.routes = [
            route for router in routers for route in router.routes if isinstance(route, APIRoute)
        ]
        self._by_path = {
            (route.path, method): route
            for route in self.routes
            if not route.param_convertors
            for method in route.methods or ()
        }
        self._by_pattern = [route for route in self.routes if route.param_convertors]
        self._other = other
        self._refusals = refusals
        self._picture_turns = FairTurns(_PICTURES_AT_ONCE)
        self._other_turns = FairTurns(_OTHERS_AT_ONCE, Allowance(_OTHERS_BURST, _OTHERS_PER_S))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._find(scope)
        client = client_of(scope)
        if route is None:
            # Health checks have turns of their own: they may come from a client that floods.
            flow = client, scope["path"] in QUIET_ROUTES
            await self._other_turns.wait(flow, scope, receive)
            await self._other(scope, receive, send)
            return

        await self._picture_turns.wait(client, scope, receive)

        scope["route"] = route
        try:
            response: Response = await route.endpoint(Request(scope, receive))
        except Overloaded as error:
            error.__traceback__ = None  # its frames hold the body
            await self._refusals.wait(client, scope, receive)
            raise
        await response(scope, receive, send)

    def template_of(self, scope: Scope) -> str | None:
        """Returns the path template of a request for a hot route, None for other requests."""
        route = self._find(scope)
        return route.path if route is not None else None

    def _find(self, scope: Scope) -> APIRoute | None:
        if route := self._by_path.get((scope["path"], scope["method"])):
            return route
        for route in self._by_pattern:
            match, found = route.matches(scope)
            if match is Match.FULL:
                scope["path_params"] = found["path_params"]
                return route
        return None


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
            "schema": _schema_of(field),
            **({"description": field["description"]} if "description" in field else {}),
        }
        for name, field in schema["properties"].items()
    ]


def _schema_of(field: dict[str, Any]) -> dict[str, Any]:
    # A parameter is left out of a URL, but never null there.
    kept = {key: one for key, one in field.items() if one is not None and key != "description"}
    for one in kept.pop("anyOf", ()):
        kept |= one if one != {"type": "null"} else {}
    return kept


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
            message = f"unknown query parameter; known: {', '.join(model.model_fields)}"
        else:
            message = f"{first['loc'][0]}: {broken_rule(first)}"
        raise InvalidParameter(message) from error
