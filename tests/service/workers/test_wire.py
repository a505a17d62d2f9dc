from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import ImageTruncated
from service.errors import EngineFailure, Overloaded, Unavailable
from service.serving.answering import Answered
from service.workers import wire
from service.workers.wire import Ask, Frame, FrameReader, Kind, Pong, WireBroken, Worked

LIMIT = 10_000
UNPACKERS: dict[str, Callable[[bytes], Any]] = {
    name: getattr(wire, name)
    for name in (
        "unpack_ask",
        "unpack_answer",
        "unpack_refusal",
        "unpack_pong",
        "unpack_worked",
        "unpack_json",
    )
}
seconds = st.floats(0, 1e6, allow_nan=False)
names = st.text(max_size=100).filter(lambda text: len(text.encode()) <= 65_535)
frames = st.lists(
    st.tuples(st.sampled_from(list(Kind)), st.integers(0, 2**64 - 1), st.binary(max_size=200)),
    max_size=10,
)


def payload_of(frame: bytes) -> bytes:
    (read,) = FrameReader(LIMIT).feed(frame)
    return read.payload


@given(frames, st.randoms(use_true_random=False))
def test_wire_frames_are_the_same_however_they_arrive(sent, random):
    stream = b"".join(wire.pack(*one) for one in sent)
    reader = FrameReader(LIMIT)
    received: list[Frame] = []

    while stream:
        cut = random.randint(1, len(stream))
        received += list(reader.feed(stream[:cut]))
        stream = stream[cut:]

    assert [(one.kind, one.id, one.payload) for one in received] == sent


@given(st.sampled_from(list(Kind)), st.binary(max_size=50))
def test_wire_missing_bytes_lead_to_the_frame_and_no_further(kind, payload):
    stream, reader = wire.pack(kind, 1, payload) + b"more", FrameReader(LIMIT)
    found: list[Frame] = []

    while not found:
        piece, stream = stream[: reader.missing_bytes], stream[reader.missing_bytes :]
        found = list(reader.feed(piece))

    assert (found[0].payload, stream) == (payload, b"more")


@given(st.lists(st.binary(max_size=60), max_size=5))
def test_wire_reader_of_arbitrary_bytes_breaks_or_waits(pieces):
    reader = FrameReader(LIMIT)

    try:
        for piece in pieces:
            list(reader.feed(piece))
    except WireBroken:
        return
    assert 0 < reader.missing_bytes <= LIMIT + 13


@pytest.mark.parametrize("name", UNPACKERS)
@given(payload=st.binary(max_size=200))
def test_wire_arbitrary_payload_is_read_or_broken(name, payload):
    try:
        read = UNPACKERS[name](payload)
    except WireBroken:
        return
    assert read is not None


def test_wire_payload_at_its_limit_read_and_above_it_broken():
    whole = wire.pack(Kind.ASK, 1, bytes(LIMIT))

    assert len(payload_of(whole)) == LIMIT
    with pytest.raises(WireBroken, match="limit"):
        list(FrameReader(LIMIT - 1).feed(whole[:13]))


def test_wire_unknown_kind_breaks():
    with pytest.raises(WireBroken, match="99"):
        list(FrameReader(LIMIT).feed(b"\0\0\0\0" + bytes([99]) + bytes(8)))


@given(names, st.integers(0, 2**32 - 1), seconds, st.binary(max_size=300))
def test_wire_ask_round_trip(name, version, remaining_s, image):
    packed = b"".join(wire.pack_ask(7, Ask(name, version, remaining_s, image)))

    asked = wire.unpack_ask(payload_of(packed))

    assert (asked.name, asked.version, asked.image) == (name, version, image)
    assert remaining_s - 0.001 <= asked.remaining_s <= remaining_s


@pytest.mark.parametrize(
    ("remaining_s", "read_s"),
    [(-1.0, 0.0), (math.inf, 4_294_967.295)],
    ids=["passed", "never"],
)
def test_wire_deadline_out_of_range_is_cut(remaining_s, read_s):
    packed = b"".join(wire.pack_ask(1, Ask("tiny", 1, remaining_s, b"")))

    assert wire.unpack_ask(payload_of(packed)).remaining_s == read_s


def test_wire_largest_picture_fits_into_the_largest_ask():
    packed = b"".join(wire.pack_ask(1, Ask("x" * 65_535, 1, 1.0, bytes(17_000_000))))

    assert list(FrameReader(wire.max_ask_bytes(17_000_000)).feed(packed))


@given(
    st.lists(st.floats(0, 1, width=32), max_size=50),
    st.tuples(seconds, seconds, seconds, seconds),
    st.integers(1, 256),
)
def test_wire_answer_round_trip_is_exact(row, times, batch_size):
    decode_s, preprocess_s, queue_s, infer_s = times
    probabilities = np.array(row, np.float32)
    answered = Answered(probabilities, decode_s, preprocess_s, queue_s, infer_s, batch_size)

    read = wire.unpack_answer(payload_of(wire.pack_answer(3, answered)))

    assert read.probabilities.dtype == np.float32
    assert read.probabilities.tobytes() == answered.probabilities.tobytes()
    assert (read.decode_s, read.preprocess_s, read.queue_s, read.infer_s) == times
    assert read.batch_size == batch_size


def test_wire_row_that_is_no_float32_breaks():
    with pytest.raises(WireBroken):
        wire.unpack_answer(bytes(36 + 3))


@pytest.mark.parametrize("name", wire.ERRORS)
def test_wire_every_error_arrives_as_what_it_was(name):
    error = wire.ERRORS[name]("what happened: ü")

    read = wire.unpack_refusal(payload_of(wire.pack_refusal(3, error)))

    assert (type(read), str(read)) == (type(error), "what happened: ü")


def test_wire_errors_of_both_packages_are_known():
    assert {ImageTruncated, Overloaded, EngineFailure} <= set(wire.ERRORS.values())


def test_wire_refusal_keeps_reason_and_when_to_come_back():
    error = Overloaded("full", 7, reason="memory")

    read = wire.unpack_refusal(payload_of(wire.pack_refusal(3, error)))

    assert isinstance(read, Unavailable)
    assert (str(read), read.retry_after_s, read.reason) == ("full", 7, "memory")


class EngineFailureOfOurs(EngineFailure):
    """A subclass that no table has."""


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("secret"), EngineFailureOfOurs("secret")], ids=["bug", "subclass"]
)
def test_wire_error_that_is_not_in_the_table_travels_without_its_message(error):
    read = wire.unpack_refusal(payload_of(wire.pack_refusal(3, error)))

    assert type(read) is EngineFailure
    assert "secret" not in str(read)


@pytest.mark.parametrize("name", ["SystemExit", "Exception", "", "os.system"])
def test_wire_refusal_of_another_class_breaks(name):
    payload = b"\0\0" + len(name).to_bytes(2, "big") + b"\0\0" + name.encode()

    with pytest.raises(WireBroken):
        wire.unpack_refusal(payload)


@given(st.booleans(), st.integers(0, 2**64 - 1))
def test_wire_pong_round_trip(alive, resident_bytes):
    pong = Pong(alive, resident_bytes)

    assert wire.unpack_pong(payload_of(wire.pack_pong(3, pong))) == pong


@given(names, seconds, st.lists(st.tuples(st.integers(0, 256), seconds), max_size=9))
def test_wire_work_round_trip(name, work_s, runs):
    worked = Worked(name, work_s, tuple(runs))

    assert wire.unpack_worked(payload_of(wire.pack_worked(worked))) == worked


def test_wire_start_message_round_trip():
    document = {"versions": [["tiny", 1, "00"]], "cpus": 2}

    assert wire.unpack_json(payload_of(wire.pack_json(Kind.START, document))) == document


@pytest.mark.parametrize(
    "payload", [b"[1]", b"{", b"\xff", b"[" * 100_000], ids=["list", "cut", "bytes", "deep"]
)
def test_wire_start_message_that_is_no_object_breaks(payload):
    with pytest.raises(WireBroken):
        wire.unpack_json(payload)
