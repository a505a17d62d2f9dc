"""Finds copies among pictures: exact ones, and near ones that were changed a little.

`training.data.checks.likeness` says what a near duplicate is and compares two pictures; here all are
compared with all, in blocks, so that 50,000 pictures take minutes and little memory.

Shapes: N pictures, P pairs, T = THUMBNAIL_PX.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.data.checks.likeness import (
    HASH_RADIUS,
    MIN_DETAIL_CORRELATION,
    MIN_TANGENT,
    coarse_thumbnails,
    detail_correlation,
    has_detail,
    hashes,
    tangent_bases,
    tangent_rows,
)

Progress = Callable[[int, int], None]
"""Takes how many are done and how many there are."""

MIN_SIDE_PX: Final = 32
"""Smaller pictures are compared exactly only: handwritten digits of 28 px are too much alike."""

# Later pictures each one is compared with in detail, the most similar first. It bounds the work
# where all pictures are alike, as those of a fixed camera.
_MAX_TRIED: Final = 8
_BLOCK: Final = 256
_CHUNK: Final = 1024


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Which of N pictures are copies of which.

    Attributes:
        exact: int, (N,): equal numbers have equal pixels.
        near: int, (N,): equal numbers are exact or near duplicates, or linked by some.
    """

    exact: NDArray[np.int64]
    near: NDArray[np.int64]


def find_duplicates(
    digests: Sequence[bytes],
    thumbnails: NDArray[np.uint8],
    comparable: NDArray[np.bool_],
    progress: Progress | None = None,
) -> Duplicates:
    """Groups pictures that are copies of each other.

    Args:
        digests: of the pixels, N.
        thumbnails: uint8, (N, T, T), 0..255: grey, the whole picture squashed.
        comparable: (N,): may be a near duplicate; others only count as exact ones.
        progress: called as pictures are done.
    """
    first_of: dict[bytes, int] = {}
    exact = np.array([first_of.setdefault(one, i) for i, one in enumerate(digests)], dtype=np.int64)
    candidates = np.flatnonzero(comparable & (exact == np.arange(len(exact))))
    detailed = [
        has_detail(thumbnails[candidates[start : start + _CHUNK]])
        for start in range(0, len(candidates), _CHUNK)
    ]
    candidates = candidates[np.concatenate([np.zeros(0, np.bool_), *detailed])]
    representative = np.arange(len(exact), dtype=np.int64)
    representative[candidates] = candidates[_grouped(thumbnails[candidates], progress)]
    return Duplicates(exact, representative[exact])


def _grouped(thumbnails: NDArray[np.uint8], progress: Progress | None) -> NDArray[np.int64]:
    """Returns the group of each thumbnail, by its first member."""
    pictures = _Pictures(thumbnails)
    group = np.arange(len(thumbnails), dtype=np.int64)
    for start in range(0, len(thumbnails), _BLOCK):
        for mirrored in (False, True):
            pairs = pictures.alike(start, mirrored)
            for at in range(0, len(pairs), _CHUNK):
                chunk = pairs[at : at + _CHUNK]
                # Pictures that are linked already need no further proof.
                chunk = chunk[group[chunk[:, 0]] != group[chunk[:, 1]]]
                if not len(chunk):
                    continue
                for a, b in chunk[pictures.same_detail(chunk, mirrored)].tolist():
                    if group[a] != group[b]:
                        low, high = sorted((group[a], group[b]))
                        group[group == high] = low
        if progress is not None:
            progress(min(start + _BLOCK, len(thumbnails)), len(thumbnails))
    return group


class _Pictures:
    """Thumbnails with what the three tests need of them."""

    def __init__(self, thumbnails: NDArray[np.uint8]) -> None:
        self._thumbnails = thumbnails
        self._hashes = hashes(thumbnails)
        self._mirrored_hashes = hashes(thumbnails[:, :, ::-1])
        self._coarse = coarse_thumbnails(thumbnails)  # (N, 16, 16)
        self._rows = tangent_rows(self._coarse)  # (N, 196)

    def alike(self, start: int, mirrored: bool) -> NDArray[np.int64]:
        """Returns the pairs (P, 2) of a block with all later pictures that pass tests 1 and 2."""
        stop = min(start + _BLOCK, len(self._hashes))
        own = (self._mirrored_hashes if mirrored else self._hashes)[start:stop, None]
        near = np.bitwise_count(own ^ self._hashes[None, start:]) <= HASH_RADIUS
        coarse = self._coarse[start:stop]
        bases = tangent_bases(coarse[:, :, ::-1] if mirrored else coarse)  # (block, 196, 5)
        found = []
        for i in range(stop - start):
            others = start + i + 1 + np.flatnonzero(near[i, i + 1 :])
            explained = np.square(self._rows[others] @ bases[i]).sum(axis=1)
            best = np.argsort(-explained, kind="stable")[:_MAX_TRIED]
            others = others[best[explained[best] >= MIN_TANGENT**2]]
            found.append(np.stack([np.full_like(others, start + i), others], axis=1))
        return np.concatenate(found)

    def same_detail(self, pairs: NDArray[np.int64], mirrored: bool) -> NDArray[np.bool_]:
        """Tells which pairs (P, 2) pass test 3."""
        first = self._thumbnails[pairs[:, 0]].astype(np.float32)
        second = self._thumbnails[pairs[:, 1]].astype(np.float32)
        return detail_correlation(first[:, :, ::-1] if mirrored else first, second) >= (
            MIN_DETAIL_CORRELATION
        )
