from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from contract.errors import ImageError
from contract.manifest import Preprocessing
from contract.preprocessing import read_input, read_pixels
from tests.pictures import jpeg, photo
from tests.training.helpers import tinynet
from training.data.prepared import PreparedPictures

SPEC = tinynet.spec()
SQUASHED = SPEC.model_copy(update={"resize_mode": "squash"})
N_BYTES = 3 * SPEC.crop_size_px**2
FIRST, SECOND, THIRD = (jpeg(photo((90, 70), seed=i)) for i in range(3))


@pytest.fixture
def reads(monkeypatch) -> list[bytes]:
    """Records the files that are decoded and preprocessed, in order."""
    seen: list[bytes] = []

    def record(data: bytes, spec: Preprocessing) -> NDArray[np.uint8]:
        seen.append(data)
        return read_pixels(data, spec)

    monkeypatch.setattr("training.data.prepared.read_pixels", record)
    return seen


@pytest.mark.parametrize("in_graph", [True, False], ids=["pixels", "normalised"])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
def test_rows_equal_the_contracts_before_and_after_caching(tiny_graph, in_graph, layout):
    draft = tinynet.draft(tiny_graph)
    graph_input = draft.graph.input.model_copy(update={"layout": layout})
    draft = replace(
        draft,
        preprocessing=SPEC.model_copy(update={"in_graph": in_graph}),
        graph=draft.graph.model_copy(update={"input": graph_input}),
    )
    prepared = PreparedPictures(10 * N_BYTES)

    for _ in range(2):
        row = prepared.row(FIRST, draft)

        expected = read_input(FIRST, draft)
        assert row.dtype == expected.dtype
        np.testing.assert_array_equal(row, expected)


def test_pixels_are_prepared_once_for_each_file_and_preprocessing(reads):
    prepared = PreparedPictures(10 * N_BYTES)

    for _ in range(3):
        for data, spec in ((FIRST, SPEC), (SECOND, SPEC), (FIRST, SQUASHED)):
            prepared.pixels(data, spec)

    assert reads == [FIRST, SECOND, FIRST]


def test_full_cache_keeps_the_first_pictures_and_prepares_others_again(reads):
    prepared = PreparedPictures(2 * N_BYTES)

    for _ in range(2):
        for data in (FIRST, SECOND, THIRD):
            prepared.pixels(data, SPEC)

    assert reads == [FIRST, SECOND, THIRD, THIRD]


def test_cached_pixels_are_read_only_and_own_their_memory():
    prepared = PreparedPictures(N_BYTES)
    pixels = prepared.pixels(FIRST, SPEC)

    assert pixels.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        pixels[0, 0, 0] = 1


def test_broken_file_is_refused_each_time():
    prepared = PreparedPictures(N_BYTES)

    for _ in range(2):
        with pytest.raises(ImageError):
            prepared.pixels(FIRST[:200], SPEC)


def test_has_room_counts_all_pictures_that_would_fit():
    prepared = PreparedPictures(2 * N_BYTES)
    prepared.pixels(FIRST, SPEC)

    assert prepared.has_room(2, SPEC)
    assert not prepared.has_room(3, SPEC)


def test_copy_for_a_worker_process_caches_nothing():
    prepared = PreparedPictures(10 * N_BYTES)
    prepared.pixels(FIRST, SPEC)

    copy = pickle.loads(pickle.dumps(prepared))  # noqa: S301 - our own

    assert not copy.has_room(1, SPEC)
    np.testing.assert_array_equal(copy.pixels(FIRST, SPEC), prepared.pixels(FIRST, SPEC))
