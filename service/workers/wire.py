"""The frames between the front and a worker process, over one socket pair.

A frame is a head (payload length, kind, picture id; big endian) and a payload. There is no pickle:
pictures and probabilities are raw bytes, numbers are packed, and the two messages of the start, which
are rare and have structure, are JSON. Errors travel by class name and are rebuilt from `ERRORS` only.

Both ends run the same code from the same installation, so there is no version negotiation; anything
malformed is a `WireBroken`, which ends the connection and with it the worker.
"""

from __future__ import annotations

import enum
import inspect
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from contract import errors as contract_errors
from service import errors
from service.serving.answering import Answered

MAX_CONTROL_BYTES: Final = 16_777_216
"""No frame but a picture is larger: probabilities of four million classes."""

_HEAD: Final = struct.Struct("!IBQ")  # payload bytes, kind, picture id
_ASK: Final = struct.Struct("!IIH")  # version number, remaining ms, bytes of the model's name
_ANSWER: Final = struct.Struct("!ddddI")  # decode, preprocess, queue, infer seconds; batch size
_REFUSAL: Final = struct.Struct("!HHH")  # retry after, bytes of the class name, of the reason
_PONG: Final = struct.Struct("!?Q")  # lanes alive, resident bytes
_WORKED: Final = struct.Struct("!dH")  # seconds, runs
_RUN: Final = struct.Struct("!Id")  # pictures, seconds
_MAX_MS: Final = 2**32 - 1
_MAX_U16: Final = 2**16 - 1


class WireBroken(Exception):
    """The peer sent what no peer of ours sends."""


class Kind(enum.IntEnum):
    """What a frame says; the first group goes to the worker, the second comes from it."""

    START = 0
    ASK = 1
    CANCEL = 2
    PING = 3

    READY = 16
    FAILED = 17
    ANSWER = 18
    REFUSAL = 19
    CANCELLED = 20
    PONG = 21
    WORKED = 22
    RETIRE = 23


@dataclass(frozen=True, slots=True)
class Frame:
    """One message.

    Attributes:
        kind: what it says.
        id: the picture it is about; 0 where it is about none.
        payload: as the functions below pack it.
    """

    kind: Kind
    id: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Ask:
    """A picture to answer.

    Attributes:
        name: of the model.
        version: its number.
        remaining_s: seconds until the deadline, at least 0.
        image: the whole file.
    """

    name: str
    version: int
    remaining_s: float
    image: bytes


@dataclass(frozen=True, slots=True)
class Pong:
    """How a worker is.

    Attributes:
        alive: every lane of every model runs and none is stuck.
        resident_bytes: memory of the process; 0 where the system does not say.
    """

    alive: bool
    resident_bytes: int


@dataclass(frozen=True, slots=True)
class Worked:
    """What a lane did with one batch.

    Attributes:
        name: of the model.
        work_s: seconds that the lane was at it.
        runs: pictures and seconds of every run.
    """

    name: str
    work_s: float
    runs: tuple[tuple[int, float], ...]


class FrameReader:
    """Cuts a stream of bytes into frames, however the bytes arrive."""

    def __init__(self, max_payload_bytes: int) -> None:
        """Starts at a frame's first byte; a payload that is larger breaks the wire."""
        self._max_payload_bytes = max_payload_bytes
        self._buffer = bytearray()

    @property
    def missing_bytes(self) -> int:
        """Bytes that the frame at hand still lacks, as far as known; at least 1."""
        if len(self._buffer) < _HEAD.size:
            return _HEAD.size - len(self._buffer)
        size, _, _ = _read_head(self._buffer, self._max_payload_bytes)
        return _HEAD.size + size - len(self._buffer)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Takes what arrived and yields the frames that are complete.

        Raises:
            WireBroken: a head is not one of ours.
        """
        self._buffer += data
        while len(self._buffer) >= _HEAD.size:
            size, kind, number = _read_head(self._buffer, self._max_payload_bytes)
            end = _HEAD.size + size
            if len(self._buffer) < end:
                return
            with memoryview(self._buffer) as view:
                payload = bytes(view[_HEAD.size : end])
            del self._buffer[:end]
            yield Frame(kind, number, payload)


def pack(kind: Kind, number: int = 0, payload: bytes = b"") -> bytes:
    """Returns a whole frame."""
    return _HEAD.pack(len(payload), kind, number) + payload


def head_of(kind: Kind, number: int, payload_bytes: int) -> bytes:
    """Returns the head of a frame whose payload is sent in pieces after it."""
    return _HEAD.pack(payload_bytes, kind, number)


def _read_head(buffer: bytearray, max_payload_bytes: int) -> tuple[int, Kind, int]:
    size, kind, number = _HEAD.unpack_from(buffer)
    if size > max_payload_bytes:
        raise WireBroken(f"a payload of {size} bytes, the limit is {max_payload_bytes}")
    try:
        return size, Kind(kind), number
    except ValueError as error:
        raise WireBroken(f"no kind of frame has the number {kind}") from error


def max_ask_bytes(max_image_bytes: int) -> int:
    """Returns the largest payload that a worker has to accept."""
    return max(MAX_CONTROL_BYTES, max_image_bytes + _ASK.size + _MAX_U16)


def pack_ask(number: int, ask: Ask) -> list[bytes]:
    """Returns the frame of a picture to answer, in pieces: the picture itself is not copied."""
    name = ask.name.encode()
    remaining_ms = min(_MAX_MS, max(0, int(min(ask.remaining_s, _MAX_MS / 1e3) * 1e3)))
    start = _ASK.pack(ask.version, remaining_ms, len(name)) + name
    return [head_of(Kind.ASK, number, len(start) + len(ask.image)) + start, ask.image]


def unpack_ask(payload: bytes) -> Ask:
    """Returns the picture to answer.

    Raises:
        WireBroken: the payload is not one of `pack_ask`.
    """
    version, remaining_ms, name_bytes = _unpack(_ASK, payload)
    end = _ASK.size + name_bytes
    name = _text(payload, _ASK.size, end)
    return Ask(name, version, remaining_ms / 1e3, payload[end:])


def pack_answer(number: int, answered: Answered) -> bytes:
    """Returns the frame of an answer."""
    times = (answered.decode_s, answered.preprocess_s, answered.queue_s, answered.infer_s)
    row = np.ascontiguousarray(answered.probabilities, dtype="<f4")
    return pack(Kind.ANSWER, number, _ANSWER.pack(*times, answered.batch_size) + row.tobytes())


def unpack_answer(payload: bytes) -> Answered:
    """Returns the answer.

    Raises:
        WireBroken: the payload is not one of `pack_answer`.
    """
    decode_s, preprocess_s, queue_s, infer_s, batch_size = _unpack(_ANSWER, payload)
    if (len(payload) - _ANSWER.size) % 4:
        raise WireBroken("a row that does not consist of float32")
    row = np.frombuffer(payload, "<f4", offset=_ANSWER.size).astype(np.float32, copy=False)
    return Answered(row, decode_s, preprocess_s, queue_s, infer_s, batch_size)


def pack_refusal(number: int, error: Exception, kind: Kind = Kind.REFUSAL) -> bytes:
    """Returns the frame of an error; one that is not in `ERRORS` travels as EngineFailure."""
    name = type(error).__name__
    detail = str(error)
    if ERRORS.get(name) is not type(error):
        name, detail = errors.EngineFailure.__name__, "the worker failed on this picture"
    retry_after_s = min(_MAX_U16, max(0, int(getattr(error, "retry_after_s", 0))))
    reason = str(getattr(error, "reason", ""))
    head = _REFUSAL.pack(retry_after_s, len(name), len(reason.encode()))
    return pack(kind, number, head + (name + reason + detail).encode(errors="replace"))


def unpack_refusal(payload: bytes) -> Exception:
    """Returns the error, of the class it had in the worker.

    Raises:
        WireBroken: the payload is not one of `pack_refusal`, or names no class of `ERRORS`.
    """
    retry_after_s, name_bytes, reason_bytes = _unpack(_REFUSAL, payload)
    end = _REFUSAL.size + name_bytes
    error_class = ERRORS.get(_text(payload, _REFUSAL.size, end))
    if error_class is None:
        raise WireBroken("an error of no known class")
    reason = _text(payload, end, end + reason_bytes)
    detail = _text(payload, end + reason_bytes, len(payload))
    if issubclass(error_class, errors.Unavailable):
        return error_class(detail, retry_after_s, reason=reason)
    return error_class(detail)


def pack_pong(number: int, pong: Pong) -> bytes:
    """Returns the frame that answers a ping."""
    return pack(Kind.PONG, number, _PONG.pack(pong.alive, pong.resident_bytes))


def unpack_pong(payload: bytes) -> Pong:
    """Returns how the worker is.

    Raises:
        WireBroken: the payload is not one of `pack_pong`.
    """
    return Pong(*_unpack(_PONG, payload))


def pack_worked(worked: Worked) -> bytes:
    """Returns the frame that reports a batch."""
    head = _WORKED.pack(worked.work_s, len(worked.runs))
    runs = b"".join(_RUN.pack(*run) for run in worked.runs)
    return pack(Kind.WORKED, 0, head + runs + worked.name.encode())


def unpack_worked(payload: bytes) -> Worked:
    """Returns what was done.

    Raises:
        WireBroken: the payload is not one of `pack_worked`.
    """
    work_s, n_runs = _unpack(_WORKED, payload)
    end = _WORKED.size + n_runs * _RUN.size
    name = _text(payload, min(end, len(payload)), max(end, len(payload)))
    runs = tuple(_RUN.iter_unpack(payload[_WORKED.size : end]))
    return Worked(name, work_s, runs)


def pack_json(kind: Kind, document: dict[str, Any]) -> bytes:
    """Returns the frame of a message of the start."""
    return pack(kind, 0, json.dumps(document).encode())


def unpack_json(payload: bytes) -> dict[str, Any]:
    """Returns the message.

    Raises:
        WireBroken: the payload is not a JSON object.
    """
    try:
        document = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise WireBroken("a message that is not JSON") from error
    if not isinstance(document, dict):
        raise WireBroken("a message that is not an object")
    return document


def _unpack(layout: struct.Struct, payload: bytes) -> tuple[Any, ...]:
    try:
        return layout.unpack_from(payload)
    except struct.error as error:
        raise WireBroken(f"a payload of {len(payload)} bytes, {layout.size} are fixed") from error


def _text(payload: bytes, start: int, end: int) -> str:
    if end > len(payload):
        raise WireBroken("a text that is longer than its payload")
    try:
        return payload[start:end].decode()
    except UnicodeDecodeError as error:
        raise WireBroken("a text that is not UTF-8") from error


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
