"""Finds exact and near duplicates among pictures.

`similarity` defines near duplicates and compares two pictures. This module compares all with all, in
blocks, so that 50,000 pictures take minutes and little memory.

Shapes: N pictures, P pairs, T = THUMBNAIL_PX.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from training.data.checks.similarity import (
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

Progress = Callable[[int, int], None]  # takes the number done and the total

# Smaller pictures have exact duplicates only: handwritten digits of 28 px are too similar.
MIN_SIDE_PX: Final = 32

# How many later pictures each one is compared with in detail, the most similar first. It bounds the
# work where all pictures are similar, such as those of a fixed camera.
_MAX_COMPARED: Final = 8
_BLOCK: Final = 256  # pictures compared with all later ones at once; bounds memory, not results
_CHUNK: Final = 1024  # thumbnails or pairs whose detail is compared at once


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Group numbers of N pictures. A group's number is the position of its first picture."""

    exact: NDArray[np.int64]  # (N,): the same number means equal pixels
    near: NDArray[np.int64]  # (N,): it means exact or near duplicates, perhaps through others


def find_duplicates(
    digests: Sequence[bytes],
    thumbnails: NDArray[np.uint8],
    comparable: NDArray[np.bool_],
    progress: Progress | None = None,
) -> Duplicates:
    """Groups the duplicates among N pictures.

    Args:
        digests: of the pixels, N.
        thumbnails: uint8, (N, T, T), 0..255: grey, the whole picture squashed.
        comparable: bool, (N,): False for pictures that can be exact duplicates only.
        progress: called after each block.
    """
    first_of: dict[bytes, int] = {}
    exact = np.array([first_of.setdefault(one, i) for i, one in enumerate(digests)], dtype=np.int64)

    # Only the first of equal pictures is compared; the others follow it into its group.
    candidates = np.flatnonzero(comparable & (exact == np.arange(len(exact))))
    detailed = [
        has_detail(thumbnails[candidates[start : start + _CHUNK]])
        for start in range(0, len(candidates), _CHUNK)
    ]
    candidates = candidates[np.concatenate([np.zeros(0, np.bool_), *detailed])]

    representative = np.arange(len(exact), dtype=np.int64)
    representative[candidates] = candidates[_group(thumbnails[candidates], progress)]
    return Duplicates(exact, representative[exact])


def _group(thumbnails: NDArray[np.uint8], progress: Progress | None) -> NDArray[np.int64]:
    comparison = _Comparison(thumbnails)
    group = np.arange(len(thumbnails), dtype=np.int64)
    for start in range(0, len(thumbnails), _BLOCK):
        for mirrored in (False, True):
            pairs = comparison.similar_pairs(start, mirrored)
            for at in range(0, len(pairs), _CHUNK):
                chunk = pairs[at : at + _CHUNK]
                # Pictures of one group need no further comparison, the most costly one.
                chunk = chunk[group[chunk[:, 0]] != group[chunk[:, 1]]]
                if not len(chunk):
                    continue
                for a, b in chunk[comparison.same_detail(chunk, mirrored)].tolist():
                    if group[a] != group[b]:
                        low, high = sorted((group[a], group[b]))
                        group[group == high] = low
        if progress is not None:
            progress(min(start + _BLOCK, len(thumbnails)), len(thumbnails))
    return group


class _Comparison:
    """Compares thumbnails with the three tests of `similarity`; computes what they need once."""

    def __init__(self, thumbnails: NDArray[np.uint8]) -> None:
        self._thumbnails = thumbnails
        self._hashes = hashes(thumbnails)
        self._mirrored_hashes = hashes(thumbnails[:, :, ::-1])
        self._coarse = coarse_thumbnails(thumbnails)  # (N, 16, 16)
        self._rows = tangent_rows(self._coarse)  # (N, 196)

    def similar_pairs(self, start: int, mirrored: bool) -> NDArray[np.int64]:
        """Returns (P, 2): a picture of the block and a later one, where both pass tests 1 and 2."""
        stop = min(start + _BLOCK, len(self._hashes))
        own = (self._mirrored_hashes if mirrored else self._hashes)[start:stop, None]
        near = np.bitwise_count(own ^ self._hashes[None, start:]) <= HASH_RADIUS
        coarse = self._coarse[start:stop]
        bases = tangent_bases(coarse[:, :, ::-1] if mirrored else coarse)  # (block, 196, 5)

        found = []
        for i in range(stop - start):
            others = start + i + 1 + np.flatnonzero(near[i, i + 1 :])
            # Squared cosine of the angle between a picture and the span of the other's tangents.
            explained = np.square(self._rows[others] @ bases[i]).sum(axis=1)
            best = np.argsort(-explained, kind="stable")[:_MAX_COMPARED]
            others = others[best[explained[best] >= MIN_TANGENT**2]]
            found.append(np.stack([np.full_like(others, start + i), others], axis=1))
        return np.concatenate(found)

    def same_detail(self, pairs: NDArray[np.int64], mirrored: bool) -> NDArray[np.bool_]:
        """Returns bool, (P,): which of the pairs (P, 2) pass test 3."""
        first = self._thumbnails[pairs[:, 0]].astype(np.float32)
        second = self._thumbnails[pairs[:, 1]].astype(np.float32)
        return detail_correlation(first[:, :, ::-1] if mirrored else first, second) >= (
            MIN_DETAIL_CORRELATION
        )
