"""Differences from the table that are meant, until the table is written anew: case, and why."""

from __future__ import annotations

_NAMELESS = "Starlette's parser wants a name in every part, as RFC 7578 does"

ACCEPTED: dict[str, str] = {
    "request/multipart-boundary-line-in-file": _NAMELESS,
    "request/multipart-disposition-attachment": _NAMELESS,
    "request/multipart-disposition-missing": _NAMELESS,
    "request/multipart-nested": _NAMELESS,
    "request/multipart-no-name": _NAMELESS,
    "request/plain-tuning": "`GET .../tuning` went with the tuner, which is `convserve tune` now",
}
