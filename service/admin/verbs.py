"""The changes that the admin port makes, as one table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from contract.repository import changes
from contract.repository.changes import Change, RepositoryState
from service.admin.requests import AliasBody, DefaultBody, NoBody, PartBody, VersionBody


@dataclass(frozen=True, slots=True)
class Verb:
    """One kind of change.

    Attributes:
        body: what a request carries.
        change: makes the change of the state, a model's name and the body.
    """

    body: type[NoBody]
    change: Callable[[RepositoryState, str, Any], Change]


# POST /v1/admin/models/{name}/<key>
MODEL_VERBS: Final = {
    "pin": Verb(VersionBody, lambda state, name, body: changes.pin(state, name, body.version)),
    "unpin": Verb(NoBody, lambda state, name, _: changes.unpin(state, name)),
    "promote": Verb(
        VersionBody, lambda state, name, body: changes.promote(state, name, body.version)
    ),
    "rollback": Verb(NoBody, lambda state, name, _: changes.rollback(state, name)),
    "alias": Verb(
        AliasBody, lambda state, name, body: changes.alias(state, name, body.alias, body.version)
    ),
    "load": Verb(PartBody, lambda state, name, body: changes.load(state, name, body.version)),
    "unload": Verb(PartBody, lambda state, name, body: changes.unload(state, name, body.version)),
}

# POST /v1/admin/default
DEFAULT: Final = Verb(DefaultBody, lambda state, name, _: changes.default(state, name))
