"""Makes the decoder crash, hang or leak on pictures of certain sizes, as a bug in native code would.

Only servers under test have it on their module search path.
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


if __name__ == "sitecustomize":  # false where a test imports the sizes
    Image.open = _open_and_act
