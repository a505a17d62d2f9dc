"""Settings of the whole process: standard streams, memory, the listening socket and the exit."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_MAX_DESCRIPTORS: Final = 65_536
_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_EXIT_ORPHANED: Final = 3
_M_TRIM_THRESHOLD: Final = -1  # glibc's malloc.h
_M_MMAP_THRESHOLD: Final = -3
_LARGE_BLOCK_BYTES: Final = 1 << 20
_KEPT_BYTES: Final = 4 << 20  # free space kept at the end of each heap


class AddressUnusable(Exception):
    """The service cannot listen on the configured address."""


def open_missing_streams() -> None:
    """Opens /dev/null for standard streams that the parent process closed."""
    # Otherwise the next file or socket would get the number of a standard stream, and its output.
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one


def raise_descriptor_limit() -> None:
    """Allows as many open files and connections as the system lets this process have, up to 65,536.

    Many systems begin with 1,024. A connection above the limit is accepted and closed at once.
    """
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_MAX_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # some systems allow less than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def limit_freed_memory() -> None:
    """Makes glibc return large blocks to the system when they are freed, and keep small ones."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return

    # By default glibc raises its threshold after the first large block and keeps later ones. A few
    # large pictures at once would make the process hundreds of megabytes larger for good.
    mallopt(_M_MMAP_THRESHOLD, _LARGE_BLOCK_BYTES)

    # A fixed threshold also means that glibc keeps only 128 kB free. Each request would then map and
    # clear 100 to 150 pages again, which takes 6% of its CPU time.
    mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def return_freed_memory() -> None:
    """Makes glibc return all free pages to the system; takes milliseconds, without the GIL."""
    try:
        malloc_trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):  # another C library
        return
    malloc_trim(0)


def bind_socket(host: str, port: int, *, listen: bool = False) -> socket.socket:
    """Returns a socket that is bound to the address and, if asked to, listens.

    Raises:
        AddressUnusable: the address is taken, belongs to another machine or is not allowed.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        if listen:
            bound.listen()
    except OSError as error:
        bound.close()
        reason = error.strerror or str(error)
        raise AddressUnusable(f"cannot listen on {host}:{port}: {reason}") from error
    return bound


@contextmanager
def bind_unix_socket(path: Path) -> Iterator[socket.socket]:
    """Binds a socket at the path, for its user and group, and removes it in the end.

    A socket that nobody listens on is replaced, because a killed process leaves one.

    Raises:
        AddressUnusable: something else is at the path, or it is not allowed.
    """
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            if path.is_socket() and _is_deserted(path):
                path.unlink()
            before = os.umask(0o117)  # from the first moment: nobody else may connect
            try:
                bound.bind(str(path))
            finally:
                os.umask(before)
        except OSError as error:
            reason = error.strerror or str(error)
            raise AddressUnusable(f"cannot listen on {path}: {reason}") from error
        ours = path.stat()
        yield bound
        with suppress(OSError):
            if path.stat().st_ino == ours.st_ino:  # no other process has taken the path
                path.unlink()
    finally:
        bound.close()


def _is_deserted(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
        except OSError:  # the server may only be too busy to accept, so it is not deserted
            return False
    return False


def die_with_parent(parent: int) -> None:
    """Makes the kernel kill this process when its parent ends. Linux only.

    Args:
        parent: the process id of the parent. If it has ended already, this process exits.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the call above
        os._exit(_EXIT_ORPHANED)


def restart(environment: Mapping[str, str]) -> None:
    """Replaces this process by a fresh one of the same command, from any thread.

    Process id, working directory and standard streams stay. All threads end at once, even inside
    native code. Blocked signals stay blocked and pending.

    Raises:
        OSError: it cannot be replaced.
    """
    _flush_streams()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)  # noqa: S606


def exit_now(status: int) -> None:
    # Skips the interpreter's shutdown, which would wait for native runs and could crash in them.
    _flush_streams()
    os._exit(status)


def _flush_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            with suppress(OSError, ValueError):  # the reader is gone
                stream.flush()
