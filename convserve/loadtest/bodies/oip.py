"""The Open Inference Protocol (KServe V2) over REST, with its binary tensor extension.

Triton, MLServer, OpenVINO Model Server and KServe speak it. Pictures are the elements of one BYTES
tensor.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import numpy as np
from pydantic_core import from_json

from convserve.loadtest.bodies.answers import parse_json, read_first_class
from convserve.loadtest.bodies.call import (
    Call,
    Options,
    check_some,
    path_of,
    to_base64,
    version_part,
)

_LENGTH: Final = struct.Struct("<I")  # in front of each element of a binary BYTES tensor
_DTYPES: Final = {
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
    "INT8": "<i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "UINT8": "<u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
}
# Triton's classification extension: value:index or value:index:label.
_RANKED: Final = re.compile(r"[-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|inf|nan):(\d+)(?::(.*))?", re.DOTALL)
_NAMES: Final = ("probabilities", "scores", "logits")  # which of several float outputs counts


class _Oip:
    many = True

    def first_classes(self, content: bytes) -> list[str]:
        # Servers may answer in JSON what was asked in binary, and the other way round.
        output = _choose(list(_outputs(content)))
        if output.datatype == "BYTES":
            return _from_texts(output)
        if output.datatype in _DTYPES:
            return _from_numbers(output)
        raise ValueError(f"no class in an output of type {output.datatype}")


class Oip(_Oip):
    """All in JSON. The protocol does not say how bytes become strings; base64 is usual."""

    name = "oip"
    help = "Open Inference Protocol V2: base64 in JSON. --field: the input's name [image]."

    def call(self, pictures: Sequence[bytes], options: Options) -> Call:
        tensor = {
            "name": options.field or "image",
            "shape": [len(pictures)],
            "datatype": "BYTES",
            "parameters": {"content_type": "base64"},  # MLServer's codecs need it
            "data": [to_base64(picture) for picture in pictures],
        }
        content = json.dumps({"inputs": [tensor]}).encode("ascii")
        return _call(pictures, options, (("Content-Type", "application/json"),), content)


class OipBinary(_Oip):
    """The binary tensor extension: a JSON header, then the pictures' bytes."""

    name = "oip-binary"
    help = "Open Inference Protocol V2 with binary tensors. --field: the input's name [image]."

    def call(self, pictures: Sequence[bytes], options: Options) -> Call:
        blob = b"".join(part for one in pictures for part in (_LENGTH.pack(len(one)), one))
        tensor = {
            "name": options.field or "image",
            "shape": [len(pictures)],
            "datatype": "BYTES",
            "parameters": {"binary_data_size": len(blob)},
        }
        document = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
        header = json.dumps(document).encode("ascii")
        headers = (
            ("Content-Type", "application/octet-stream"),
            ("Inference-Header-Content-Length", str(len(header))),
        )
        return _call(pictures, options, headers, header + blob)


def _call(
    pictures: Sequence[bytes],
    options: Options,
    headers: tuple[tuple[str, str], ...],
    content: bytes,
) -> Call:
    check_some(pictures)
    path = path_of(options, "/v2/models/", version_part(options, "/versions/") + "/infer")
    return Call("POST", path, headers, content)


@dataclass(frozen=True, slots=True)
class _Output:
    name: str
    datatype: str
    shape: list[int]
    data: Any  # a flat list, or the bytes of a binary tensor


def _outputs(content: bytes) -> Iterator[_Output]:
    document, blobs = _split(content)
    outputs = document.get("outputs") if isinstance(document, dict) else None
    if not isinstance(outputs, list) or not all(isinstance(one, dict) for one in outputs):
        raise ValueError(f"no outputs in the answer {content[:200]!r}")

    # Space may follow the header, so the binary outputs are counted from the end.
    position = len(blobs) - sum(map(_blob_size, outputs))
    if position < 0 or blobs[:position].strip():
        raise ValueError("the binary outputs do not have the size that the header declares")
    for output in outputs:
        size = _blob_size(output)
        data = blobs[position : position + size] if size else _flat(output.get("data"))
        position += size
        shape = output.get("shape")
        if not isinstance(shape, list) or not all(type(one) is int and one >= 0 for one in shape):
            raise ValueError("an output without a shape")
        yield _Output(str(output.get("name")), str(output.get("datatype")), shape, data)


def _split(content: bytes) -> tuple[Any, bytes]:
    try:
        return from_json(content), b""
    except ValueError:
        pass  # binary outputs follow the JSON

    try:
        # Latin-1 keeps the positions of bytes; the header itself is UTF-8.
        end = json.JSONDecoder().raw_decode(content.decode("latin-1"))[1]
    except (ValueError, RecursionError):
        end = 0
    return parse_json(content[: end or None]), content[end:]


def _blob_size(output: dict[str, Any]) -> int:
    parameters = output.get("parameters")
    size = parameters.get("binary_data_size", 0) if isinstance(parameters, dict) else 0
    if type(size) is not int or size < 0:
        raise ValueError(f"an output of {size} bytes")
    return size


def _flat(data: object) -> list[Any]:
    if not isinstance(data, list):
        raise ValueError("an output without data")
    while data and all(isinstance(one, list) for one in data):
        data = list(chain.from_iterable(data))
    return data


def _choose(outputs: Sequence[_Output]) -> _Output:
    # Labels win over scores. Which of several is meant, only a usual name can tell.
    texts = [one for one in outputs if one.datatype == "BYTES"]
    candidates = texts or outputs
    if len(candidates) > 1:
        candidates = [one for one in candidates if one.name.lower() in _NAMES]
    if len(candidates) != 1:
        names = ", ".join(f"{one.name} ({one.datatype})" for one in outputs)
        raise ValueError(f"cannot choose among the outputs: {names or 'none'}")
    return candidates[0]


def _from_texts(output: _Output) -> list[str]:
    texts = list(_elements(output.data)) if isinstance(output.data, bytes) else output.data
    if not texts or math.prod(output.shape) != len(texts):
        raise ValueError(f"{len(texts)} elements in an output of shape {output.shape}")
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("an element of a BYTES output is not a string")

    ranked = [_RANKED.fullmatch(text) for text in texts]
    # Without a batch dimension, the shape of a ranking is the number of its classes.
    n_pictures = 1 if all(ranked) and len(output.shape) == 1 else output.shape[0]
    each = len(texts) // n_pictures
    return [_label(texts[at], ranked[at]) for at in range(0, len(texts), each)]


def _elements(blob: bytes) -> Iterator[str]:
    position = 0
    while position < len(blob):
        if position + _LENGTH.size > len(blob):
            raise ValueError("a BYTES output ends within a length")
        (size,) = _LENGTH.unpack_from(blob, position)
        position += _LENGTH.size
        if position + size > len(blob):
            raise ValueError("a BYTES output ends within an element")
        yield blob[position : position + size].decode("utf-8")
        position += size


def _label(text: str, ranked: re.Match[str] | None) -> str:
    if ranked is not None:
        return ranked[2] or ranked[1]
    if text.startswith(("[", "{")):  # a runtime's own JSON, as in benchmarks/servers/mlserver
        try:
            document = json.loads(text)
        except ValueError:
            return text
        return read_first_class(document)
    return text


def _from_numbers(output: _Output) -> list[str]:
    dtype = np.dtype(_DTYPES[output.datatype])
    try:
        if isinstance(output.data, bytes):
            values = np.frombuffer(output.data, dtype)
        else:
            values = np.array(output.data, dtype)
        values = values.reshape(output.shape)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"the data does not fit the output's shape {output.shape}") from error
    if values.size == 0 or values.ndim == 0:
        raise ValueError(f"no class in an output of shape {output.shape}")
    if np.isnan(values).any():
        raise ValueError("a score is not a number")

    if values.dtype.kind in "iu" and values.dtype.itemsize > 1:  # 8-bit integers may be scores
        if values.size != values.shape[0]:
            raise ValueError(f"integers of shape {output.shape} are not one class for each picture")
        return [str(one) for one in values.ravel()]

    rows, sides = (1, values.shape) if values.ndim == 1 else (values.shape[0], values.shape[1:])
    if [side for side in sides if side != 1] != [values.size // rows]:
        raise ValueError(f"numbers of shape {output.shape} are not scores of classes")
    return [str(one) for one in values.reshape(rows, -1).argmax(axis=1)]
