"""Differences from the table that are meant, until the table is written anew: case, and why."""

from __future__ import annotations

ACCEPTED: dict[str, str] = {
    "request/plain-tuning": "`GET .../tuning` went with the tuner, which is `convserve tune` now"
}
