"""Makes decoders misbehave where a picture's size asks for it.

On the module search path of servers under test only: it stands for bugs in native code that the
product does not have.
"""

import ctypes
import os
import signal
import time
from typing import Any

from PIL import Image

CRASH, HANG, BLOCK, LEAK = (64, 33), (64, 34), (64, 35), (64, 36)
_FOR_EVER_S = 3600
_leaked: list[bytes] = []

_ACTS = {
    CRASH: lambda: os.kill(os.getpid(), signal.SIGSEGV),
    HANG: lambda: time.sleep(_FOR_EVER_S),
    BLOCK: lambda: ctypes.PyDLL(None).sleep(_FOR_EVER_S),  # holds the interpreter lock
    LEAK: lambda: _leaked.append(b"x" * 150_000_000),
}
_open = Image.open


def _open_and_act(*arguments: Any, **options: Any) -> Any:
    image = _open(*arguments, **options)
    if image.size in _ACTS:
        _ACTS[image.size]()
    return image


if __name__ == "sitecustomize":  # not where a test only wants the sizes
    Image.open = _open_and_act
