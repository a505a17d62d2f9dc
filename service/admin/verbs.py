"""The changes that the admin port makes, as one table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from contract.repository import changes
from contract.repository.changes import Change, RepositoryState
from contract.repository.file import RepositoryFile
from service.admin.requests import AliasBody, DefaultBody, NoBody, VersionBody


def _in_body(_file: RepositoryFile, _model: str, body: Any) -> int | None:
    version: int = body.version
    return version


def _previous(file: RepositoryFile, model: str, _body: Any) -> int | None:
    return file.policy(model).previous


@dataclass(frozen=True, slots=True)
class Verb:
    """One kind of change.

    Attributes:
        body: what a request carries.
        change: makes the change of the state, a model's name and the body.
        proves: returns the version that must be proven first, if there is one.
    """

    body: type[NoBody]
    change: Callable[[RepositoryState, str, Any], Change]
    proves: Callable[[RepositoryFile, str, Any], int | None] = lambda _file, _model, _body: None


# POST /v1/admin/models/{name}/<key>
MODEL_VERBS: Final = {
    "pin": Verb(
        VersionBody, lambda state, name, body: changes.pin(state, name, body.version), _in_body
    ),
    "unpin": Verb(NoBody, lambda state, name, _: changes.unpin(state, name)),
    "promote": Verb(
        VersionBody, lambda state, name, body: changes.promote(state, name, body.version), _in_body
    ),
    "rollback": Verb(NoBody, lambda state, name, _: changes.rollback(state, name), _previous),
    "alias": Verb(
        AliasBody,
        lambda state, name, body: changes.alias(state, name, body.alias, body.version),
        _in_body,
    ),
    "load": Verb(
        VersionBody, lambda state, name, body: changes.load(state, name, body.version), _in_body
    ),
    "unload": Verb(
        VersionBody, lambda state, name, body: changes.unload(state, name, body.version)
    ),
}

# POST /v1/admin/default
DEFAULT: Final = Verb(DefaultBody, lambda state, name, _: changes.default(state, name))
