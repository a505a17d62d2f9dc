"""Checkpoints that try to run code, misstate their contents or exhaust the reader.

Every payload that does something does it to a file called TARGET, so that a test notices if one succeeds.
"""

from __future__ import annotations

import collections
import io
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

TARGET = "convserve-hostile-marker"


class Call:
    """Pickles into a call of `function(*arguments)` at load time."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[object, ...]:
        return self.function, self.arguments


def zipped(payload: bytes, *, compression: int = zipfile.ZIP_STORED, extra: str = "") -> bytes:
    """Returns an archive like torch.save's with another pickle inside."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("archive/data.pkl", payload)
        archive.writestr("archive/version", b"3\n")
        if extra:
            archive.writestr(extra, b"x")
    return buffer.getvalue()


def pickled_call(function: Callable[..., object], *arguments: object) -> bytes:
    return pickle.dumps({"weight": Call(function, *arguments)}, protocol=2)


def legacy(function: Callable[..., object], *arguments: object) -> bytes:
    """Returns the format torch wrote before 1.6: several pickles in a row."""
    head = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    return b"".join(pickle.dumps(part, protocol=2) for part in head) + pickled_call(
        function, *arguments
    )


def scripted() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("net/code/__torch__.py", "def forward(self): pass")
        archive.writestr("net/constants.pkl", pickle.dumps(()))
        archive.writestr("net/data.pkl", pickle.dumps({}))
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            data = pickled_call(os.system, f"touch {TARGET}")
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def saved(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def opcodes(text: bytes) -> bytes:
    return b"\x80\x02" + text + b"."


TOUCH = f"touch {TARGET}"
WRITE = f"open({TARGET!r}, 'w').close()"

HOSTILE: dict[str, bytes] = {
    "os-system.pth": zipped(pickled_call(os.system, TOUCH)),
    "os-system-legacy.pth": legacy(os.system, TOUCH),
    "os-system-bare-pickle.pth": pickled_call(os.system, TOUCH),
    "eval.pth": zipped(pickled_call(eval, WRITE)),
    "eval-legacy.pth": legacy(eval, WRITE),
    "exec.pth": zipped(pickled_call(exec, WRITE)),
    "popen.pth": zipped(pickled_call(os.popen, TOUCH)),
    "open-for-writing.pth": zipped(pickled_call(open, TARGET, "w")),
    "import-module.pth": zipped(pickled_call(__import__, "antigravity")),
    "nested-loads.pth": zipped(pickled_call(pickle.loads, pickled_call(os.system, TOUCH))),
    "getattr.pth": zipped(opcodes(b"cbuiltins\ngetattr\n(cos\nsystem\nX\x04\x00\x00\x00nametR")),
    "global-dotted.pth": zipped(
        b"\x80\x04\x8c\x05torch\x8c\x10serialization.os\x93\x8c\x06system\x93."
    ),
    "inst-opcode.pth": zipped(b"(S'" + TOUCH.encode() + b"'\nios\nsystem\n."),
    "obj-opcode.pth": zipped(b"(cos\nsystem\nS'" + TOUCH.encode() + b"'\no."),
    "build-setstate.pth": zipped(
        opcodes(b"ccollections\nOrderedDict\n)R}(X\x0c\x00\x00\x00__setstate__cos\nsystem\nub")
    ),
    "setitem-on-a-class.pth": zipped(opcodes(b"ctorch\nTensor\nK\x01K\x02s")),
    "whole-module.pth": saved(nn.Linear(2, 2)),
    "persistent-id.pth": zipped(opcodes(b"Pos.system\n")),
    "endless-memo.pth": zipped(opcodes(b"h\xff")),
    "deep-nesting.pth": zipped(b"\x80\x02" + b"(" * 20000 + b"t" * 20000 + b"."),
    "compressed.pth": zipped(b"0" * 5_000_000, compression=zipfile.ZIP_DEFLATED),
    "climbing-name.pth": zipped(pickle.dumps({}), extra="../" + TARGET),
    "absolute-name.pth": zipped(pickle.dumps({}), extra="/tmp/" + TARGET),  # noqa: S108
    "torchscript.pt": scripted(),
    "legacy-tar.pth": tarred(),
    "broken-zip.pth": zipped(pickle.dumps({}))[:-20],
    "empty.pth": b"",
    "text.pth": b"not a checkpoint at all\n",
    "no-tensors.pth": saved({"epoch": 3}),
    "nothing-in-it.pth": saved({}),
    "a-list.pth": saved([torch.zeros(2)]),
    "a-number-as-name.pth": saved({1: torch.zeros(2)}),
    "sparse-tensor.pth": saved({"weight": torch.eye(2).to_sparse()}),
    "optimizer-state.pth": saved({"state_dict": collections.OrderedDict(a=[1, 2])}),
    "safetensors-header-of-2-exabytes.safetensors": struct.pack("<Q", 2**61) + b"{}",
    "safetensors-that-is-a-pickle.safetensors": pickled_call(os.system, TOUCH),
    "another-suffix.npy": b"\x93NUMPY",
}


def write(folder: Path) -> list[Path]:
    paths = []
    for name, data in HOSTILE.items():
        (folder / name).write_bytes(data)
        paths.append(folder / name)
    return paths
