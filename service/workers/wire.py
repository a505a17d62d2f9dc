"""The frames between the front and a child process, over one socket pair.

A frame is a head (payload length and kind; big endian) and a payload. There is no pickle: pictures and
probabilities are raw bytes, numbers are packed, and the two messages of the start, which are rare and
have structure, are JSON. Errors travel by class name and are rebuilt from `ERRORS` only.

Both ends run the same code from the same installation, so there is no version negotiation; anything
malformed is a `WireError`, which ends the connection and with it the child.
"""

from __future__ import annotations

import enum
import inspect
import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from contract import errors as contract_errors
from service import errors
from service.batching.lane import RowResult

_HEAD: Final = struct.Struct("!QB")  # payload bytes, kind
_WORK: Final = struct.Struct("!HBH")  # place of the version in the plan, wide, pictures
_PICTURE: Final = struct.Struct("!dQ")  # remaining seconds, bytes
_DONE: Final = struct.Struct("!dHH")  # seconds of work, runs, pictures
_RUN: Final = struct.Struct("!Id")  # pictures, seconds
_OUTCOME: Final = struct.Struct("!BQ")  # kind, bytes
_ROW: Final = struct.Struct("!ddddI")  # decode, preprocess, queue, run seconds; batch size
_REFUSAL: Final = struct.Struct("!HHH")  # retry after, bytes of the class name, of the reason
_MAX_U16: Final = 2**16 - 1
_UNANSWERED, _ANSWERED, _REFUSED = range(3)


class WireError(Exception):
    """The peer sent what no peer of ours sends."""


class FrameKind(enum.IntEnum):
    """What a frame says; the first group goes to the child, the second comes from it."""

    START = 0
    WORK = 1

    READY = 16
    FAILED = 17
    DONE = 18
    RETIRE = 19


@dataclass(frozen=True, slots=True)
class Frame:
    """One message: what it says, and the payload as the functions below pack it."""

    kind: FrameKind
    payload: bytes


@dataclass(frozen=True, slots=True)
class WirePicture:
    """A picture to answer.

    Attributes:
        image: the whole file.
        remaining_s: seconds until its deadline.
    """

    image: bytes
    remaining_s: float


@dataclass(frozen=True, slots=True)
class WireBatch:
    """A batch to run.

    Attributes:
        version: its place in the plan that the child was started with.
        wide: the run may have all cores.
        pictures: the batch.
    """

    version: int
    wide: bool
    pictures: list[WirePicture]


@dataclass(frozen=True, slots=True)
class WireRow:
    """A picture's answer, and the seconds its preparing took."""

    row: RowResult
    decode_s: float
    preprocess_s: float


@dataclass(frozen=True, slots=True)
class WireBatchDone:
    """What became of a batch.

    Attributes:
        outcomes: for each picture, in order: its answer, its error, or None for neither.
        runs: pictures and seconds of every run that succeeded.
        work_s: seconds of the whole work.
    """

    outcomes: list[WireRow | Exception | None]
    runs: list[tuple[int, float]]
    work_s: float


class FrameReader:
    """Cuts a stream of bytes into frames, however the bytes arrive."""

    def __init__(self) -> None:
        """Starts at a frame's first byte."""
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Takes what arrived and yields the frames that are complete.

        Raises:
            WireBroken: a head is not one of ours.
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
    """Reads one frame from a source that gives exactly as many bytes as it is asked for.

    Args:
        read: returns so many bytes, or None at the end of the stream.

    Raises:
        WireBroken: the head is not one of ours, or the stream ends within the frame.
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
    """Returns a whole frame, in pieces: large ones are not copied."""
    return [_HEAD.pack(sum(map(len, payload)), kind), *payload]


def _read_head(buffer: bytes | bytearray) -> tuple[int, FrameKind]:
    size, kind = _HEAD.unpack_from(buffer)
    try:
        return size, FrameKind(kind)
    except ValueError as error:
        raise WireError(f"no kind of frame has the number {kind}") from error


def pack_work(work: WireBatch) -> list[bytes]:
    """Returns the frame of a batch to run."""
    head = _WORK.pack(work.version, work.wide, len(work.pictures))
    sizes = (_PICTURE.pack(one.remaining_s, len(one.image)) for one in work.pictures)
    return pack(FrameKind.WORK, head + b"".join(sizes), *(one.image for one in work.pictures))


def unpack_work(payload: bytes) -> WireBatch:
    """Returns the batch to run.

    Raises:
        WireBroken: the payload is not one of `pack_work`.
    """
    version, wide, n_pictures = _unpack(_WORK, payload)
    start = _WORK.size
    end = start + n_pictures * _PICTURE.size
    pictures = []
    for _ in range(n_pictures):
        remaining_s, size = _unpack(_PICTURE, payload, start)
        start += _PICTURE.size
        pictures.append(WirePicture(_bytes(payload, end, end + size), remaining_s))
        end += size
    return WireBatch(version, bool(wide), pictures)


def pack_done(done: WireBatchDone) -> list[bytes]:
    """Returns the frame of what became of a batch."""
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
    times = (outcome.decode_s, outcome.preprocess_s, row.queue_s, row.run_s)
    scores = np.ascontiguousarray(row.probabilities, dtype="<f4")
    return _ANSWERED, _ROW.pack(*times, row.batch_size) + scores.tobytes()


def unpack_done(payload: bytes) -> WireBatchDone:
    """Returns what became of a batch.

    Raises:
        WireBroken: the payload is not one of `pack_done`.
    """
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
        raise WireError(f"no kind of outcome has the number {kind}")
    decode_s, preprocess_s, queue_s, run_s, batch_size = _unpack(_ROW, data)
    if (len(data) - _ROW.size) % 4:
        raise WireError("a row that does not consist of float32")
    scores: NDArray[np.float32] = np.frombuffer(data, "<f4", offset=_ROW.size)
    scores = scores.astype(np.float32, copy=False)
    return WireRow(RowResult(scores, queue_s, run_s, batch_size), decode_s, preprocess_s)


def pack_failed(error: Exception) -> list[bytes]:
    """Returns the frame that says why a child cannot start."""
    return pack(FrameKind.FAILED, _pack_error(error))


def unpack_failed(payload: bytes) -> Exception:
    """Returns why a child cannot start.

    Raises:
        WireBroken: the payload is not one of `pack_failed`.
    """
    return _unpack_error(payload)


def _pack_error(error: Exception) -> bytes:
    """Packs an error; one that is not in `ERRORS` travels as EngineFailure, without its message."""
    name = type(error).__name__
    detail = str(error)
    if ERRORS.get(name) is not type(error):
        name, detail = errors.EngineFailure.__name__, "the worker failed on this picture"
    retry_after_s = min(_MAX_U16, max(0, int(getattr(error, "retry_after_s", 0))))
    reason = str(getattr(error, "reason", ""))
    head = _REFUSAL.pack(retry_after_s, len(name), len(reason.encode()))
    return head + (name + reason + detail).encode(errors="replace")


def _unpack_error(payload: bytes) -> Exception:
    """Returns the error, of the class it had in the child."""
    retry_after_s, name_bytes, reason_bytes = _unpack(_REFUSAL, payload)
    end = _REFUSAL.size + name_bytes
    error_class = ERRORS.get(_text(payload, _REFUSAL.size, end))
    if error_class is None:
        raise WireError("an error of no known class")
    reason = _text(payload, end, end + reason_bytes)
    detail = _text(payload, end + reason_bytes, len(payload))
    if issubclass(error_class, errors.Unavailable):
        return error_class(detail, retry_after_s, reason=reason)
    return error_class(detail)


def pack_json(kind: FrameKind, document: dict[str, Any]) -> list[bytes]:
    """Returns the frame of a message of the start."""
    return pack(kind, json.dumps(document).encode())


def unpack_json(payload: bytes) -> dict[str, Any]:
    """Returns the message.

    Raises:
        WireBroken: the payload is not a JSON object.
    """
    try:
        document = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise WireError("a message that is not JSON") from error
    if not isinstance(document, dict):
        raise WireError("a message that is not an object")
    return document


def _unpack(layout: struct.Struct, payload: bytes, at: int = 0) -> tuple[Any, ...]:
    try:
        return layout.unpack_from(payload, at)
    except struct.error as error:
        raise WireError(f"a payload of {len(payload)} bytes, {layout.size} are fixed") from error


def _bytes(payload: bytes, start: int, end: int) -> bytes:
    if end > len(payload):
        raise WireError("a part that is longer than its payload")
    return payload[start:end]


def _text(payload: bytes, start: int, end: int) -> str:
    try:
        return _bytes(payload, start, end).decode()
    except UnicodeDecodeError as error:
        raise WireError("a text that is not UTF-8") from error


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
        raise TypeError("two errors have one name")
    return by_name


ERRORS: Final = _error_classes()
"""Every error that may come out of a worker, by class name; base classes are none."""
