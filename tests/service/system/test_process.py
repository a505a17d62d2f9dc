from __future__ import annotations

import ctypes
import os
import platform
import resource
import socket
import subprocess
import sys
from typing import NoReturn

import pytest

from service.system import process


def in_child(code: str, *, close: int) -> subprocess.CompletedProcess[str]:
    """Runs Python code in a process that starts with one standard stream closed."""
    script = f'exec "$@" {close}>&-'
    return subprocess.run(  # noqa: S603
        ["sh", "-c", script, "sh", sys.executable, "-c", code],  # noqa: S607
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("number", [0, 1, 2], ids=["in", "out", "err"])
def test_open_missing_streams_reopens_closed_ones_under_their_number(number):
    code = (
        "from service.system import process; import os, sys; process.open_missing_streams();"
        f"sys.exit(os.readlink('/proc/self/fd/{number}') != os.devnull)"
    )

    assert in_child(code, close=number).returncode == 0


def test_open_missing_streams_does_not_change_open_ones():
    before = [os.fstat(number).st_ino for number in (0, 1, 2)]

    process.open_missing_streams()

    assert [os.fstat(number).st_ino for number in (0, 1, 2)] == before


INFINITY = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "expected"),
    [
        (1024, 4096, [(4096, 4096)]),
        (1024, 1_048_576, [(65_536, 1_048_576)]),
        (1024, INFINITY, [(65_536, INFINITY)]),
        (100_000, 1_048_576, []),
        (4096, 4096, []),
        (INFINITY, INFINITY, []),
    ],
)
def test_descriptor_limit_is_raised_as_far_as_allowed(monkeypatch, soft, hard, expected):
    limits: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: limits.append(limit))

    process.raise_descriptor_limit()

    assert limits == expected


def test_descriptor_limit_that_cannot_be_raised_stays(monkeypatch):
    tried: list[tuple[int, int]] = []

    def refuse(_: int, limit: tuple[int, int]) -> None:
        tried.append(limit)
        raise ValueError

    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, INFINITY))
    monkeypatch.setattr(resource, "setrlimit", refuse)

    process.raise_descriptor_limit()

    assert tried == [(65_536, INFINITY)]


def test_limit_freed_memory_asks_glibc(monkeypatch):
    calls = []
    library = type("Library", (), {"mallopt": lambda _self, *args: calls.append(args)})()
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)

    process.limit_freed_memory()

    assert calls == [(-3, 1 << 20), (-1, 4 << 20)]


def test_return_freed_memory_asks_glibc(monkeypatch):
    calls = []
    library = type("Library", (), {"malloc_trim": lambda _self, *args: calls.append(args)})()
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)

    process.return_freed_memory()

    assert calls == [(0,)]


@pytest.mark.parametrize(
    ("call", "function"),
    [(process.limit_freed_memory, "mallopt"), (process.return_freed_memory, "malloc_trim")],
    ids=["limit", "return"],
)
def test_other_c_libraries_are_left_alone(monkeypatch, call, function):
    class Library:
        def __init__(self) -> None:
            self.asked: list[str] = []

        def __getattr__(self, name: str) -> NoReturn:
            self.asked.append(name)
            raise AttributeError(name)

    library = Library()
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)

    call()

    assert library.asked == [function]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
def test_return_freed_memory_returns_the_holes():
    code = """
from pathlib import Path
from service.system import process

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])

process.limit_freed_memory()
blocks = [bytearray(100_000) for _ in range(1000)]
for at in range(0, 1000, 2):
    blocks[at] = None
before = resident()
process.return_freed_memory()
print(before - resident())
"""
    run = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert int(run.stdout) > 25_000_000 // os.sysconf("SC_PAGE_SIZE")  # of 50 MB


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
def test_limit_freed_memory_keeps_the_memory_that_every_picture_needs():
    code = """
import resource
from service.system import process

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

process.limit_freed_memory()
before = faults()
for _ in range(200):
    bytearray(700_000)
print(faults() - before)
"""
    run = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    # 171 page faults if freed memory is kept, 27,832 if it is returned to the system.
    assert int(run.stdout) < 1000


def test_limit_freed_memory_without_glibc_does_nothing(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())

    process.limit_freed_memory()

    assert not hasattr(ctypes.CDLL(None), "mallopt")


def test_process_unix_socket_is_for_its_group_and_removed_in_the_end(tmp_path):
    path = tmp_path / "a.sock"

    with process.bind_unix_socket(path) as bound:
        bound.listen()
        mode = path.stat().st_mode
        with pytest.raises(process.AddressUnusable, match=r"a\.sock: Address already in use"):
            process.bind_unix_socket(path).__enter__()
        assert path.is_socket()

    assert (mode & 0o777, path.exists()) == (0o660, False)


def test_process_deserted_unix_socket_is_replaced(tmp_path):
    path = tmp_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))

    with process.bind_unix_socket(path) as bound:
        bound.listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            assert client.getpeername() == str(path)


def test_process_unix_socket_of_a_successor_is_left(tmp_path):
    path = tmp_path / "a.sock"

    with process.bind_unix_socket(path):
        path.unlink()
        path.write_text("another", encoding="ascii")

    assert path.read_text(encoding="ascii") == "another"


@pytest.mark.parametrize("name", ["file", "folder", "none/a.sock", "x" * 200])
def test_process_unix_socket_that_cannot_be_made_refused(tmp_path, name):
    (tmp_path / "file").write_text("mine", encoding="ascii")
    (tmp_path / "folder").mkdir()

    with pytest.raises(process.AddressUnusable, match="cannot listen on"):
        process.bind_unix_socket(tmp_path / name).__enter__()

    assert (tmp_path / "file").read_text(encoding="ascii") == "mine"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_bound_socket_has_the_address_but_accepts_no_connection(host):
    with process.bind_socket(host, 0) as bound:
        address = bound.getsockname()

        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address[:2])


def test_bound_socket_error_names_an_address_in_use():
    with process.bind_socket("127.0.0.1", 0) as first:
        first.listen()
        port = first.getsockname()[1]

        with pytest.raises(process.AddressUnusable, match=f"127.0.0.1:{port}: .* in use"):
            process.bind_socket("127.0.0.1", port)


def test_bound_socket_error_names_an_address_of_another_machine():
    with pytest.raises(process.AddressUnusable, match=r"203\.0\.113\.1:80"):
        process.bind_socket("203.0.113.1", 80)


def test_exit_now_flushes_and_skips_exit_handlers():
    code = (
        "from service.system import process; import atexit, sys; atexit.register(print, 'too late');"
        "sys.stdout.write('said'); process.exit_now(7)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)  # noqa: S603

    assert (done.returncode, done.stdout) == (7, "said")


RESTARTING = """
import os, sys, threading, time
from service.system import process
if not os.environ.get("AGAIN"):
    print(os.getpid(), sys.argv[1:], flush=True)
    again = {**os.environ, "AGAIN": "yes"}
    threading.Thread(target=process.restart, args=[again]).start()
    time.sleep(60)  # stands for native code that does not return
print(os.getpid(), sys.argv[1:])
"""


def test_restart_runs_the_same_command_in_the_same_process_from_any_thread():
    ended = subprocess.run(  # noqa: S603 - our own interpreter and code
        [sys.executable, "-c", RESTARTING, "one", "two words"], capture_output=True, text=True
    )

    before, after = ended.stdout.splitlines()
    assert (ended.returncode, before) == (0, after)
    assert after.endswith("['one', 'two words']")
