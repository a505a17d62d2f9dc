"""The pictures to send: read, made, broken, and what their first classes should be."""

from __future__ import annotations

from convserve.loadtest.pictures.breaking import break_pictures
from convserve.loadtest.pictures.expected import BadExpectations, match_expected, read_expected
from convserve.loadtest.pictures.making import make_pictures
from convserve.loadtest.pictures.reading import (
    NoPictures,
    Picture,
    UnreadablePicture,
    read_pictures,
)

__all__ = [
    "BadExpectations",
    "NoPictures",
    "Picture",
    "UnreadablePicture",
    "break_pictures",
    "make_pictures",
    "match_expected",
    "read_expected",
    "read_pictures",
]
