"""A server in a process of its own, its log, and raw connections to it."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from httpx2 import Client, Response

from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60  # the timeout of every wait


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class Server:
    """`convserve serve` on a free port, with a home directory of its own."""

    def __init__(self, home: Path, **settings: Any) -> None:
        """Launches the process without waiting for it to serve.

        Args:
            home: its working directory.
            settings: of the service. Also `hooks`, a folder with a sitecustomize.py that its
                processes run first, and `under`, a command to prefix, such as unshare.
        """
        hooks = settings.pop("hooks", None)
        under = settings.pop("under", ())
        self.home = home
        self.log: list[dict[str, Any]] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        variables = {f"CONVSERVE_{name.upper()}": str(value) for name, value in settings.items()}
        self._process = subprocess.Popen(  # noqa: S603
            [
                *under,
                sys.executable,
                "-m",
                "convserve",
                "serve",
                *([] if "port" in settings else ["--port", "0"]),
            ],
            cwd=home,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(home),
                "PYTHONPATH": os.pathsep.join(str(one) for one in (hooks, ROOT) if one),
            }
            | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.url = ""
        self.port = 0
        self._reader = threading.Thread(target=self._read, daemon=True)

    def start(self) -> Self:
        """Waits until the server serves."""
        self._reader.start()
        self.url = self.wait_for_log("serving")["url"]
        port = self.url.rpartition(":")[2]
        self.port = int(port) if port.isdigit() else 0  # a unix socket has none
        return self

    def start_unread(self) -> Self:
        """Waits until the server serves, then stops reading its log."""
        assert self._process.stdout is not None
        while not self.url:
            self.url = json.loads(self._process.stdout.readline()).get("url", "")
        self.port = int(self.url.rpartition(":")[2])
        return self

    def wait_for_log(self, message: str) -> dict[str, Any]:
        """Returns the next line of the log with this message."""
        while (line := self._lines.get(timeout=PATIENCE_S)) is not None:
            self.log.append(json.loads(line))
            if self.log[-1]["message"] == message:
                return self.log[-1]
        raise AssertionError(f"no {message!r} before the end; {self._process.stderr.read()}")  # type: ignore[union-attr]

    @property
    def pid(self) -> int:
        return self._process.pid

    def workers(self) -> list[int]:
        """The process ids of its workers, in ascending order."""
        found = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text(encoding="ascii")
        return sorted(int(pid) for pid in found.split())

    def send_signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def exit_code_unread(self) -> int:
        """Waits for the process to exit, without reading the log."""
        return self._process.wait(PATIENCE_S)

    def exit_code(self) -> int:
        """Waits for the process to exit and reads the rest of the log."""
        code = self._process.wait(PATIENCE_S)
        if not self._reader.ident:
            self._reader.start()
        self._reader.join(PATIENCE_S)
        while (line := self._lines.get(timeout=PATIENCE_S)) is not None:
            self.log.append(json.loads(line))
        return code

    def stderr(self) -> str:
        """Standard error as a whole. Blocks until the process has exited."""
        assert self._process.stderr is not None
        return self._process.stderr.read()

    def stop(self) -> None:
        """Kills the process if it still runs, and closes its pipes."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            if stream is self._process.stdout and self._reader.ident:
                self._reader.join(PATIENCE_S)
            stream.close()

    def client(self) -> Client:
        """An HTTP client that keeps its connection alive."""
        return Client(base_url=self.url, timeout=PATIENCE_S)

    def connect(self) -> Connection:
        """A raw connection, for requests sent byte by byte."""
        return Connection(self.port)

    def metric(self, name: str) -> float:
        """The value of a metric without labels."""
        with self.client() as client:
            lines = client.get("/metrics").text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))

    def wait_for_metric(self, name: str, condition: Callable[[float], bool]) -> None:
        """Polls the metric until its value meets the condition."""
        wait_until(lambda: condition(self.metric(name)), PATIENCE_S)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)


@contextmanager
def running_server(**settings: object) -> Iterator[Server]:
    """Runs a server. Without settings it serves the committed models."""
    with TemporaryDirectory() as home:
        server = Server(Path(home), **settings)
        try:
            yield server.start()
        finally:
            server.stop()


class Connection:
    """A TCP connection that sends raw bytes and parses the responses."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
        self._reader = self._socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()
        self._socket.close()

    def send(self, *pieces: bytes | str) -> Self:
        """Sends each piece with its own call, so usually in its own packet."""
        for piece in pieces:
            self._socket.sendall(piece.encode() if isinstance(piece, str) else piece)
        return self

    def finish(self) -> Self:
        """Closes the sending side. Responses can still be read."""
        self._socket.shutdown(socket.SHUT_WR)
        return self

    def reset(self) -> None:
        """Closes with a TCP reset."""
        linger = b"\1\0\0\0\0\0\0\0"  # on, for 0 s
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._reader.close()
        self._socket.close()

    def line(self) -> str:
        """The next line, empty at the end."""
        return self._reader.readline().decode()

    def response(self) -> Response | None:
        """The next response, or None if the connection ends without one."""
        try:
            status = self._reader.readline().split(b" ", 2)
            headers = []
            while (line := self._reader.readline()) not in (b"\r\n", b""):
                name, _, value = line.partition(b":")
                headers.append((name.strip(), value.strip()))
            length = int(dict(headers).get(b"content-length", 0))
            content = self._reader.read(length)
        except ConnectionResetError:
            return None
        return (
            Response(int(status[1]), headers=headers, content=content) if len(status) > 1 else None
        )

    def closed(self) -> bool:
        """Waits for the server to close. False if it sends anything before that."""
        try:
            return self._reader.read() == b""
        except ConnectionResetError:
            return True


def post(body: bytes = b"", *headers: str, path: str = "/v1/classify") -> bytes:
    """The bytes of a POST. Without `headers` it gets the right Content-Length."""
    lines = headers or (f"Content-Length: {len(body)}",)
    head = "\r\n".join((f"POST {path} HTTP/1.1", "Host: test", *lines))
    return head.encode() + b"\r\n\r\n" + body
