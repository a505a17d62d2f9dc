"""Intended differences from the table, by case, with the reason. Clear it when the table is rewritten."""

from __future__ import annotations

_NAMELESS = "Starlette's parser requires a name in every part, as RFC 7578 does"

ACCEPTED: dict[str, str] = {
    "request/multipart-boundary-line-in-file": _NAMELESS,
    "request/multipart-disposition-attachment": _NAMELESS,
    "request/multipart-disposition-missing": _NAMELESS,
    "request/multipart-nested": _NAMELESS,
    "request/multipart-no-name": _NAMELESS,
    "request/plain-tuning": "`GET .../tuning` is removed; the tuner is now `convserve tune`",
}
