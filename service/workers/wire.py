"""The frames between the front and a child process, over one socket pair.

A frame is a head (payload length and kind, big endian) and a payload. There is no pickle: pictures and
probabilities are raw bytes, numbers are packed, START and READY are JSON. Errors travel by class name and
are rebuilt from `ERRORS` only.

Both ends run the same code from the same installation, so there is no version negotiation. A malformed
frame raises `WireError`, which ends the connection and with it the child.
"""

from __future__ import annotations

import enum
import inspect
import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, cast, get_args

from contract import errors as contract_errors
from contract.predictions import Ranking, TopK
from service import errors
from service.batching.lane import RowResult

_HEAD: Final = struct.Struct("!QB")  # payload bytes, kind
_WORK: Final = struct.Struct("!HBH")  # index of the version in START, all_cores, pictures
_PICTURE: Final = struct.Struct("!dIdQ")  # remaining seconds, top k, least probability, bytes
_DONE: Final = struct.Struct("!dHH")  # seconds of work, runs, pictures
_RUN: Final = struct.Struct("!Id")  # pictures, seconds
_OUTCOME: Final = struct.Struct("!BQ")  # kind, bytes
_ROW: Final = struct.Struct("!dddddI")  # decode, preprocess, queue, run, rank s; batch size
_CLASS: Final = struct.Struct("!If")  # of a ranking: index, probability
_REFUSAL: Final = struct.Struct("!HHH")  # retry after, bytes of the class name, of the reason
_MAX_U16: Final = 2**16 - 1
_UNANSWERED, _ANSWERED, _REFUSED = range(3)


class WireError(Exception):
    """The peer broke the protocol."""


class FrameKind(enum.IntEnum):
    """The kinds of message."""

    # From the front to a child
    START = 0
    WORK = 1

    # From a child to the front
    READY = 16
    FAILED = 17
    DONE = 18
    RETIRE = 19  # it got SIGTERM and wants to be replaced
    LOADING = 20  # it begins with the next version of START


@dataclass(frozen=True, slots=True)
class Frame:
    """One message; the functions below pack and unpack its payload."""

    kind: FrameKind
    payload: bytes


@dataclass(frozen=True, slots=True)
class WirePicture:
    """A picture of a batch: the whole file."""

    image: bytes
    remaining_s: float  # until its deadline; the clocks of two processes need not agree
    wanted: TopK


@dataclass(frozen=True, slots=True)
class WireBatch:
    """A batch to run."""

    version: int  # its index in the START message
    all_cores: bool  # the run may have all cores
    pictures: list[WirePicture]


@dataclass(frozen=True, slots=True)
class WireRow:
    """A picture's answer, with the times of its preparation."""

    row: RowResult
    decode_s: float
    preprocess_s: float


@dataclass(frozen=True, slots=True)
class WireBatchDone:
    """The results of a batch."""

    outcomes: list[WireRow | Exception | None]  # one per picture, in order; None: not answered
    runs: list[tuple[int, float]]  # pictures, seconds; successful runs
    work_s: float  # preparation and runs


class FrameReader:
    """Cuts a stream of bytes into frames, however the bytes arrive."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Adds bytes and yields the frames that are complete.

        Raises:
            WireError: a head is malformed.
        """
        self._buffer += data
        while len(self._buffer) >= _HEAD.size:
            size, kind = _read_head(self._buffer)
            end = _HEAD.size + size
            if len(self._buffer) < end:
                return
            with memoryview(self._buffer) as view:
                payload = bytes(view[_HEAD.size : end])
            del self._buffer[:end]
            yield Frame(kind, payload)


def read_frame(read: Callable[[int], bytes | None]) -> Frame | None:
    """Reads one frame, or None at the end of the stream.

    Args:
        read: returns exactly the number of bytes asked for, or None if the stream ends first.

    Raises:
        WireError: the head is malformed, or the stream ends within the frame.
    """
    head = read(_HEAD.size)
    if head is None:
        return None
    size, kind = _read_head(head)
    payload = read(size) if size else b""
    if payload is None:
        raise WireError("the stream ended within a frame")
    return Frame(kind, payload)


def pack(kind: FrameKind, *payload: bytes) -> list[bytes]:
    """Returns a whole frame in pieces, so that large ones are not copied."""
    return [_HEAD.pack(sum(map(len, payload)), kind), *payload]


def _read_head(buffer: bytes | bytearray) -> tuple[int, FrameKind]:
    size, kind = _HEAD.unpack_from(buffer)
    try:
        return size, FrameKind(kind)
    except ValueError as error:
        raise WireError(f"unknown kind of frame: {kind}") from error


def pack_work(work: WireBatch) -> list[bytes]:
    head = _WORK.pack(work.version, work.all_cores, len(work.pictures))
    heads = (
        _PICTURE.pack(one.remaining_s, one.wanted.k, one.wanted.min_probability, len(one.image))
        for one in work.pictures
    )
    return pack(FrameKind.WORK, head + b"".join(heads), *(one.image for one in work.pictures))


def unpack_work(payload: bytes) -> WireBatch:
    version, all_cores, n_pictures = _unpack(_WORK, payload)
    start = _WORK.size
    end = start + n_pictures * _PICTURE.size
    pictures = []
    for _ in range(n_pictures):
        remaining_s, k, min_probability, size = _unpack(_PICTURE, payload, start)
        start += _PICTURE.size
        image, wanted = _bytes(payload, end, end + size), TopK(k, min_probability)
        pictures.append(WirePicture(image, remaining_s, wanted))
        end += size
    return WireBatch(version, bool(all_cores), pictures)


def pack_done(done: WireBatchDone) -> list[bytes]:
    head = _DONE.pack(done.work_s, len(done.runs), len(done.outcomes))
    pieces = [head, *(_RUN.pack(*run) for run in done.runs)]
    for outcome in done.outcomes:
        kind, data = _pack_outcome(outcome)
        pieces += (_OUTCOME.pack(kind, len(data)), data)
    return pack(FrameKind.DONE, b"".join(pieces))


def _pack_outcome(outcome: WireRow | Exception | None) -> tuple[int, bytes]:
    if outcome is None:
        return _UNANSWERED, b""
    if isinstance(outcome, Exception):
        return _REFUSED, _pack_error(outcome)
    row = outcome.row
    times = (outcome.decode_s, outcome.preprocess_s, row.queue_s, row.run_s, row.rank_s)
    classes = (_CLASS.pack(index, probability) for index, probability in row.ranking)
    return _ANSWERED, _ROW.pack(*times, row.batch_size) + b"".join(classes)


def unpack_done(payload: bytes) -> WireBatchDone:
    work_s, n_runs, n_outcomes = _unpack(_DONE, payload)
    at = _DONE.size

    runs = []
    for _ in range(n_runs):
        runs.append(_unpack(_RUN, payload, at))
        at += _RUN.size

    outcomes: list[WireRow | Exception | None] = []
    for _ in range(n_outcomes):
        kind, size = _unpack(_OUTCOME, payload, at)
        at += _OUTCOME.size
        outcomes.append(_unpack_outcome(kind, _bytes(payload, at, at + size)))
        at += size
    return WireBatchDone(outcomes, [(int(size), float(run_s)) for size, run_s in runs], work_s)


def _unpack_outcome(kind: int, data: bytes) -> WireRow | Exception | None:
    if kind == _UNANSWERED:
        return None
    if kind == _REFUSED:
        return _unpack_error(data)
    if kind != _ANSWERED:
        raise WireError(f"unknown kind of outcome: {kind}")
    decode_s, preprocess_s, queue_s, run_s, rank_s, batch_size = _unpack(_ROW, data)
    if (len(data) - _ROW.size) % _CLASS.size:
        raise WireError("a ranking is not a whole number of classes")
    ranking: Ranking = list(_CLASS.iter_unpack(data[_ROW.size :]))
    row = RowResult(ranking, queue_s, run_s, batch_size, rank_s)
    return WireRow(row, decode_s, preprocess_s)


def pack_failed(error: Exception) -> list[bytes]:
    return pack(FrameKind.FAILED, _pack_error(error))


def unpack_failed(payload: bytes) -> Exception:
    return _unpack_error(payload)


def _pack_error(error: Exception) -> bytes:
    name = type(error).__name__
    detail = str(error)
    # An unexpected error travels as EngineFailure, and without its message: that is not for clients.
    if ERRORS.get(name) is not type(error):
        name, detail = errors.EngineFailure.__name__, "the worker failed on this picture"

    retry_after_s = min(_MAX_U16, max(0, int(getattr(error, "retry_after_s", 0))))
    reason = str(getattr(error, "reason", ""))
    head = _REFUSAL.pack(retry_after_s, len(name), len(reason.encode()))
    return head + (name + reason + detail).encode(errors="replace")


def _unpack_error(payload: bytes) -> Exception:
    retry_after_s, name_bytes, reason_bytes = _unpack(_REFUSAL, payload)
    end = _REFUSAL.size + name_bytes
    error_class = ERRORS.get(_text(payload, _REFUSAL.size, end))
    if error_class is None:
        raise WireError("unknown error class")

    reason = _text(payload, end, end + reason_bytes)
    detail = _text(payload, end + reason_bytes, len(payload))
    if issubclass(error_class, errors.Unavailable):
        known = reason in get_args(errors.OverloadReason)
        overload = cast(errors.OverloadReason, reason) if known else None
        return error_class(detail, retry_after_s, reason=overload)
    return error_class(detail)


def pack_json(kind: FrameKind, document: dict[str, Any]) -> list[bytes]:
    return pack(kind, json.dumps(document).encode())


def unpack_json(payload: bytes) -> dict[str, Any]:
    try:
        document = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise WireError("a message is not JSON") from error
    if not isinstance(document, dict):
        raise WireError("a message is not a JSON object")
    return document


def _unpack(layout: struct.Struct, payload: bytes, at: int = 0) -> tuple[Any, ...]:
    try:
        return layout.unpack_from(payload, at)
    except struct.error as error:
        raise WireError(f"a payload of {len(payload)} bytes is too short") from error


def _bytes(payload: bytes, start: int, end: int) -> bytes:
    if end > len(payload):
        raise WireError("a part is longer than its payload")
    return payload[start:end]


def _text(payload: bytes, start: int, end: int) -> str:
    try:
        return _bytes(payload, start, end).decode()
    except UnicodeDecodeError as error:
        raise WireError("a text is not UTF-8") from error


def _error_classes() -> dict[str, type[Exception]]:
    found = [
        one
        for module in (contract_errors, errors)
        for _, one in inspect.getmembers(module, inspect.isclass)
        if issubclass(one, Exception)
        and one.__module__ == module.__name__
        and (hasattr(one, "code") or issubclass(one, errors.ProviderUnavailable))
    ]

    by_name: dict[str, type[Exception]] = {one.__name__: one for one in found}
    if len(by_name) != len(found):
        raise TypeError("two error classes have the same name")
    return by_name


# Every error that a worker may send, by class name. Base classes, which have no code, are left out.
ERRORS: Final = _error_classes()
