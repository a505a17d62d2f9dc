"""Nothing is sent and nothing is written, traced at the system calls: native code hides from Python.

Left alone, onnxruntime writes a device id below HOME as soon as it is imported and reports to its
maker within a minute (docs/decisions/0011-no-telemetry.md).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.server import ROOT


def strace_works() -> bool:
    """Says whether system calls can be traced here; some containers forbid it."""
    if shutil.which("strace") is None:
        return False
    tried = subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True)  # noqa: S603, S607
    return tried.returncode == 0


pytestmark = pytest.mark.skipif(not strace_works(), reason="strace is not there or not allowed")

CALLS = "connect,sendto,sendmsg,openat,open,creat,mkdir,mkdirat,rename,renameat,unlink"
# Without an address, data goes over a connection; one to another machine has been seen as AF_INET.
WORDLESS = re.compile(
    r"ENOENT|EEXIST|EACCES|/dev/(null|tty)|AF_UNIX|/proc/self/oom_score_adj|send\w+\(.*, NULL, 0\)"
)


def traced(home: Path, *arguments: str) -> tuple[list[str], str]:
    """Runs Python under strace; returns the calls that send or write something, and the output."""
    trace = home.parent / "trace"
    home.mkdir()
    done = subprocess.run(  # noqa: S603
        [  # noqa: S607
            "strace",
            "-ff",  # a file per thread: in one file, threads interrupt each other's lines
            "-qq",
            "-e",
            f"trace={CALLS}",
            "-o",
            str(trace),
            sys.executable,
            *arguments,
        ],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    acts = re.compile(r"O_CREAT|O_WRONLY|O_RDWR|mkdir|creat\(|rename|unlink|AF_INET|send(to|msg)\(")
    traces = home.parent.glob("trace.*")
    lines = [line for one in traces for line in one.read_text(errors="replace").splitlines()]
    return [line for line in lines if acts.search(line) and not WORDLESS.search(line)], done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("-m", "convserve", "classify", "examples/cat.jpg"),
        ("-m", "convserve", "verify"),
        (
            "-c",
            "from training.evaluation.session import quantization; quantization(); print('cat ok')",
        ),
    ],
    ids=["classify", "verify", "training"],
)
def test_no_telemetry_nothing_sent_and_nothing_written(tmp_path, arguments):
    calls, printed = traced(tmp_path / "home", *arguments)

    assert "cat" in printed or "ok" in printed
    assert calls == []
    assert list((tmp_path / "home").rglob("*")) == []


@pytest.mark.parametrize(
    ("act", "seen"),
    [
        ("pathlib.Path.home().joinpath('x').write_text('')", "O_CREAT"),
        ("socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('127.0.0.1', 9))", "AF_INET"),
    ],
    ids=["file", "socket"],
)
def test_no_telemetry_tracer_sees_what_is_done(tmp_path, act, seen):
    """The other test would pass for ever if the tracer were blind."""
    calls, _ = traced(tmp_path / "home", "-c", f"import pathlib, socket; {act}")

    assert any(seen in call for call in calls)
