"""Differences from the table that are meant, until the table is written anew: case, and why."""

from __future__ import annotations

ACCEPTED: dict[str, str] = {}
