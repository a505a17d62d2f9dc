"""What concerns the process as a whole: its standard streams, its memory and how it ends."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_EXIT_ORPHANED: Final = 3
_M_TRIM_THRESHOLD: Final = -1  # malloc.h of glibc
_M_MMAP_THRESHOLD: Final = -3
_LARGE_BLOCK_BYTES: Final = 1 << 20
_KEPT_BYTES: Final = 4 << 20  # free at the end of each heap


class AddressUnusable(Exception):
    """The service cannot listen where it was told to."""


def open_missing_streams() -> None:
    """Opens /dev/null for standard streams that were closed by whoever started the process.

    Otherwise the next file or socket would take their number, and be written to as if it were them.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one


def limit_freed_memory() -> None:
    """Makes glibc return large blocks to the system when they are freed, and keep the rest.

    By default it learns from the first large block to keep later ones, and several large pictures
    at once leave the process hundreds of megabytes larger for good. Once told not to learn, it
    would also return all but 128 kB of the space that every picture needs, and the system would
    clear and map it again for the next one: 100 to 150 pages a request, 6 % of its CPU time. Other
    C libraries are left alone.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)
    mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def bound_socket(host: str, port: int) -> socket.socket:
    """Returns a socket that has the address but does not listen yet.

    Raises:
        AddressUnusable: the address is taken, not this machine's, or not allowed.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        reason = error.strerror or str(error)
        raise AddressUnusable(f"cannot listen on {host}:{port}: {reason}") from error
    return bound


@contextmanager
def within(seconds: float, on_timeout: Callable[[], None]) -> Iterator[None]:
    """Calls back, on another thread, if the block takes longer: native code cannot be interrupted."""
    timer = threading.Timer(seconds, on_timeout)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def die_with_parent(parent: int) -> None:
    """Has the system end this process with its parent, even while it hangs; Linux only.

    Args:
        parent: the process that it should be; where it has ended already, so does this one.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(_EXIT_ORPHANED)


def leave_at_once(status: int) -> None:
    """Ends the process without finalising it, since native runs may still be going on in it."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with suppress(OSError, ValueError):  # nobody reads it any more
                stream.flush()
    os._exit(status)
