"""What a body kind makes from pictures, and the interface of all kinds."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import quote

from contract.errors import UnsupportedMediaType
from contract.images import sniff


@dataclass(frozen=True, slots=True)
class Options:
    """What the user may choose about a request.

    Attributes:
        model: for paths that name a model.
        version: for paths that name a version; needs a model.
        path: replaces the path of the body kind, with its query.
        field: the name of a form field, a JSON member or an input; None: the kind's own default.
        headers: added by the sender, not by the body kind.
    """

    model: str | None = None
    version: str | None = None
    path: str | None = None
    field: str | None = None
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP request, without host, connection and length headers."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    content: bytes


class Body(Protocol):
    """One way to send pictures and to read the answer.

    Attributes:
        name: as on the command line.
        help: one line about it.
        many: whether one request can hold several pictures.
    """

    name: str
    help: str
    many: bool

    def call(self, pictures: Sequence[bytes], options: Options) -> Call:
        """Makes the request for these pictures, which may be broken.

        Raises:
            ValueError: no picture, more than one although the kind holds one, or the options do
                not give a path.
        """

    def first_classes(self, content: bytes) -> list[str]:
        """Returns the most probable class of each picture in the body of a 200, in order.

        A class is its label, or its index as text where the server sends scores only. A picture
        that failed alone, beside others in the same request, is "!" and its error's code. The
        caller compares the number of classes with the number of pictures it has sent.

        Raises:
            ValueError: the content is not an answer of this protocol, or could mean two things.
        """


def path_of(options: Options, prefix: str, suffix: str, default: str | None = None) -> str:
    """Returns the path of a call.

    Args:
        options: `path` wins over everything.
        prefix: in front of the model's name and version.
        suffix: behind it.
        default: the path without a model.

    Raises:
        ValueError: no path and no model, a version without a model, or a path without a slash.
    """
    if options.path is not None:
        if not options.path.startswith("/"):
            raise ValueError(f"a path must start with /, got {options.path!r}")
        return options.path
    if options.model is None:
        if options.version is not None:
            raise ValueError("a version needs the name of its model")
        if default is None:
            raise ValueError("this kind of request needs the name of a model, or a path")
        return default
    return prefix + quote(options.model, safe="") + suffix


def version_part(options: Options, before: str) -> str:
    return "" if options.version is None else before + quote(options.version, safe="")


def only_picture(pictures: Sequence[bytes], name: str) -> bytes:
    if len(pictures) != 1:
        raise ValueError(f"a request of kind {name} holds one picture, not {len(pictures)}")
    return pictures[0]


def check_some(pictures: Sequence[bytes]) -> None:
    if not pictures:
        raise ValueError("a request needs a picture")


def media_type(picture: bytes) -> str:
    # By the magic bytes, as a client would by the suffix. Broken pictures have no type of their own.
    try:
        return sniff(picture).media_type
    except UnsupportedMediaType:
        return "application/octet-stream"


def to_base64(picture: bytes) -> str:
    return base64.b64encode(picture).decode("ascii")
