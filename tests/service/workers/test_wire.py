from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import ImageTruncated
from contract.predictions import TopK
from service.batching.lane import RowResult
from service.errors import (
    EngineFailure,
    Overloaded,
    OverloadReason,
    Unavailable,
    WorkerNotStarted,
)
from service.workers import wire
from service.workers.wire import (
    Frame,
    FrameKind,
    FrameReader,
    WireBatch,
    WireBatchDone,
    WireError,
    WirePicture,
    WireRow,
)

UNPACKERS: dict[str, Callable[[bytes], Any]] = {
    name: getattr(wire, name)
    for name in ("unpack_work", "unpack_done", "unpack_failed", "unpack_json")
}
KINDS = st.sampled_from(list(FrameKind))
u16 = st.integers(0, 2**16 - 1)
seconds = st.floats(0, allow_nan=False)
wanted = st.builds(TopK, st.integers(0, 2**32 - 1), st.floats(0, 1))
pictures = st.builds(WirePicture, st.binary(max_size=300), seconds, wanted)
works = st.builds(WireBatch, u16, st.booleans(), st.lists(pictures, max_size=8))


def joined(pieces: Iterable[bytes]) -> bytes:
    return b"".join(pieces)


def payload_of(pieces: Iterable[bytes]) -> bytes:
    (read,) = FrameReader().feed(joined(pieces))
    return read.payload


def reader_of(data: bytes) -> Callable[[int], bytes | None]:
    """Returns exactly the number of bytes asked for, or None."""
    rest = [data]

    def read(size: int) -> bytes | None:
        if len(rest[0]) < size:
            return None
        piece, rest[0] = rest[0][:size], rest[0][size:]
        return piece

    return read


# Frames


@given(
    st.lists(st.tuples(KINDS, st.binary(max_size=200)), max_size=10),
    st.randoms(use_true_random=False),
)
def test_wire_frames_do_not_depend_on_how_the_bytes_are_split(sent, random):
    stream = joined(joined(wire.pack(*one)) for one in sent)
    reader = FrameReader()
    received: list[Frame] = []

    while stream:
        cut = random.randint(1, len(stream))
        received += list(reader.feed(stream[:cut]))
        stream = stream[cut:]

    assert [(one.kind, one.payload) for one in received] == sent


@given(KINDS, st.binary(max_size=50))
def test_wire_read_frame_reads_no_bytes_beyond_the_frame(kind, payload):
    read = reader_of(joined(wire.pack(kind, payload)) + b"more")

    assert wire.read_frame(read) == Frame(kind, payload)
    assert read(4) == b"more"


def test_wire_stream_that_ends_between_frames_is_at_its_end():
    assert wire.read_frame(reader_of(b"")) is None


def test_wire_stream_that_ends_within_a_frame_is_an_error():
    whole = joined(wire.pack(FrameKind.WORK, b"payload"))

    with pytest.raises(WireError, match="within a frame"):
        wire.read_frame(reader_of(whole[:-1]))


@given(st.lists(st.binary(max_size=60), max_size=5))
def test_wire_reader_of_arbitrary_bytes_raises_or_waits(pieces):
    reader, found, broken = FrameReader(), 0, False

    try:
        for piece in pieces:
            found += len(list(reader.feed(piece)))
    except WireError:
        broken = True
    assert broken or 9 * found <= sum(map(len, pieces))


@given(st.binary(max_size=60))
def test_wire_read_frame_of_arbitrary_bytes_raises_or_ends(data):
    try:
        frame = wire.read_frame(reader_of(data))
    except WireError:
        return
    assert frame is None or len(frame.payload) <= len(data) - 9


def test_wire_unknown_kind_is_an_error():
    with pytest.raises(WireError, match="99"):
        list(FrameReader().feed(bytes(8) + bytes([99])))


@pytest.mark.parametrize("name", UNPACKERS)
@given(payload=st.binary(max_size=200))
def test_wire_arbitrary_payload_is_read_or_raises(name, payload):
    try:
        read = UNPACKERS[name](payload)
    except WireError:
        return
    assert read is not None


@given(works, st.data())
def test_wire_truncated_work_is_an_error(work, data):
    whole = payload_of(wire.pack_work(work))
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]

    with pytest.raises(WireError):
        wire.unpack_work(cut)


def test_wire_picture_count_beyond_the_payload_is_an_error():
    with pytest.raises(WireError):
        wire.unpack_work(b"\0\0\0\xff\xff")


# Batches


@given(works)
def test_wire_work_round_trip(work):
    assert wire.unpack_work(payload_of(wire.pack_work(work))) == work


@pytest.mark.parametrize("remaining_s", [-1.5, 0.0, math.inf], ids=["passed", "now", "never"])
def test_wire_remaining_time_round_trip_is_exact(remaining_s):
    work = WireBatch(0, False, [WirePicture(b"x", remaining_s, TopK(3, 0.25))])

    assert wire.unpack_work(payload_of(wire.pack_work(work))) == work


def test_wire_pictures_are_not_copied_into_their_frame():
    images = [bytes(1000), bytes(2000)]

    pieces = wire.pack_work(
        WireBatch(0, True, [WirePicture(image, 1.0, TopK()) for image in images])
    )

    assert [piece for piece in pieces if len(piece) >= 1000] == images
    assert all(any(piece is image for piece in pieces) for image in images)


# Outcomes

rows = st.builds(
    lambda ranking, queue_s, run_s, size, rank_s, decode_s, preprocess_s: WireRow(
        RowResult(ranking, queue_s, run_s, size, rank_s), decode_s, preprocess_s
    ),
    st.lists(st.tuples(st.integers(0, 2**32 - 1), st.floats(0, 1, width=32)), max_size=50),
    seconds,
    seconds,
    st.integers(1, 256),
    seconds,
    seconds,
    seconds,
)


@given(st.lists(rows, max_size=4), st.lists(st.tuples(u16, seconds), max_size=9), seconds)
def test_wire_answers_round_trip_is_exact(sent, runs, work_s):
    read = wire.unpack_done(payload_of(wire.pack_done(WireBatchDone(list(sent), runs, work_s))))

    assert (read.runs, read.work_s, len(read.outcomes)) == (runs, work_s, len(sent))
    for ours, theirs in zip(sent, read.outcomes, strict=True):
        assert isinstance(theirs, WireRow)
        assert theirs == ours


def outcome_of(outcome: Exception | None) -> Any:
    (read,) = wire.unpack_done(
        payload_of(wire.pack_done(WireBatchDone([outcome], [], 0.0)))
    ).outcomes
    return read


def test_wire_picture_without_an_outcome_has_none():
    assert outcome_of(None) is None


def test_wire_outcomes_keep_their_order():
    row = WireRow(RowResult([(0, 0.5)], 0, 0, 1), 0, 0)
    sent: list[WireRow | Exception | None] = [None, row, ImageTruncated("x"), row, None]

    read = wire.unpack_done(payload_of(wire.pack_done(WireBatchDone(sent, [], 0.0)))).outcomes

    assert list(map(type, read)) == list(map(type, sent))


def test_wire_ranking_that_ends_within_a_class_is_an_error():
    head = bytes(12 - 1) + b"\1" + b"\1" + (44 + 3).to_bytes(8, "big")

    with pytest.raises(WireError, match="whole number of classes"):
        wire.unpack_done(head + bytes(44 + 3))


def test_wire_outcome_of_an_unknown_kind_is_an_error():
    with pytest.raises(WireError, match="77"):
        wire.unpack_done(bytes(12 - 1) + b"\1" + bytes([77]) + bytes(8))


# Errors


@pytest.mark.parametrize("name", wire.ERRORS)
def test_wire_every_listed_error_round_trip(name):
    error = wire.ERRORS[name]("what happened: ü")

    for read in (outcome_of(error), wire.unpack_failed(payload_of(wire.pack_failed(error)))):
        assert (type(read), str(read)) == (type(error), "what happened: ü")


def test_wire_errors_of_both_packages_are_listed():
    known = {ImageTruncated, Overloaded, EngineFailure, WorkerNotStarted}

    assert known <= set(wire.ERRORS.values())


@given(st.text(max_size=80), st.sampled_from(["", *get_args(OverloadReason)]))
def test_wire_refusal_keeps_its_reason_and_retry_time(detail, reason):
    read = outcome_of(Overloaded(detail, 7, reason=reason or None))

    assert isinstance(read, Unavailable)
    assert (str(read), read.reason, read.retry_after_s) == (detail, reason or "overloaded", 7)


class UnlistedEngineFailure(EngineFailure):
    """A subclass that is not in `wire.ERRORS`."""


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("secret"), UnlistedEngineFailure("secret")], ids=["bug", "subclass"]
)
def test_wire_unlisted_error_is_sent_without_its_message(error):
    read = outcome_of(error)

    assert type(read) is EngineFailure
    assert "secret" not in str(read)


@pytest.mark.parametrize("name", ["SystemExit", "Exception", "", "os.system"])
def test_wire_error_of_an_unknown_class_is_an_error(name):
    payload = b"\0\0" + len(name).to_bytes(2, "big") + b"\0\0" + name.encode()

    with pytest.raises(WireError):
        wire.unpack_failed(payload)


# Start message


def test_wire_start_message_round_trip():
    document = {"versions": [["tiny", 1, "00"]], "log_level": "info"}

    assert wire.unpack_json(payload_of(wire.pack_json(FrameKind.START, document))) == document


@pytest.mark.parametrize(
    "payload", [b"[1]", b"{", b"\xff", b"[" * 100_000], ids=["list", "cut", "bytes", "deep"]
)
def test_wire_start_message_that_is_not_an_object_is_an_error(payload):
    with pytest.raises(WireError):
        wire.unpack_json(payload)
