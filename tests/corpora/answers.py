"""Sends every odd request and picture to a real server and keeps the answers as a table.

It uses only `convserve serve` and HTTP, so that the table survives every internal change.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import queue
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from tests import tinymodel
from tests.corpora.odd_pictures import Build, odd_pictures
from tests.corpora.odd_requests import NEXT, NEXT_ID, Stream, odd_requests

ROOT = Path(__file__).parents[2]
TABLE = Path(__file__).with_name("answers.tsv")
HEADER = "case\traw, multipart, json; or all answers on the connection"
TOLERANCE = 0.02  # of a probability: processors and codecs round differently

_PATIENCE_S = 40  # the server's own is 10 s for a head, and a little more for a body
_CLIENTS = 6

Answers = dict[str, tuple[str, ...]]
"""By case: an answer for each way to send a picture, or all answers on a connection as one text."""


def ask_everything(*flags: str) -> Answers:
    """Starts a server with extra flags and returns its answers to every case."""
    requests, pictures = odd_requests(), odd_pictures()
    # Cases that wait for a server timeout go first: they run beside the others at no cost.
    slow_first = sorted(requests, key=lambda name: not requests[name].waits)
    waiting = sum(stream.waits for stream in requests.values())
    with (
        TemporaryDirectory() as home,
        _server(Path(home), *flags) as port,
        _Clients(port) as clients,
    ):
        with ThreadPoolExecutor(_CLIENTS + waiting) as pool:
            asked = {
                f"request/{name}": pool.submit(_exchange, port, requests[name])
                for name in slow_first
            }
            for name, build in pictures.items():
                asked[f"picture/{name}"] = pool.submit(clients.post_picture, build)
        return {name: future.result() for name, future in sorted(asked.items())}


@contextmanager
def _server(home: Path, *flags: str) -> Iterator[int]:
    """Runs `convserve serve` with the tiny model; yields its port."""
    models, log = home / "models", home / "log"
    tinymodel.write_version(models, lopsided=True)
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603
            [
                Path(sys.executable).with_name("convserve"),
                "serve",
                f"--models-dir={models}",
                "--port=0",
                *flags,
            ],
            cwd=home,
            # This checkout's packages, even if another one is installed.
            env={"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": str(ROOT)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield _port_when_ready(process, log)
            if process.poll() is not None:
                raise RuntimeError(f"the server ended:\n{log.read_text()[-5000:]}")
        finally:
            process.kill()
            process.wait()


def _port_when_ready(process: subprocess.Popen[bytes], log: Path) -> int:
    deadline_s = time.monotonic() + _PATIENCE_S
    while process.poll() is None and time.monotonic() < deadline_s:
        match = re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text())
        if match and _is_ready(int(match[1])):
            return int(match[1])
        time.sleep(0.05)
    raise RuntimeError(f"the server did not become ready:\n{log.read_text()[-5000:]}")


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)
    with closing(connection), suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    return False


# --- pictures -------------------------------------------------------------------------------------

_BOUNDARY = "0c1d2e3f-corpora"


class _Clients:
    """A small pool of keep-alive connections."""

    def __init__(self, port: int) -> None:
        self._all = [
            http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)
            for _ in range(_CLIENTS)
        ]
        self._free: queue.SimpleQueue[http.client.HTTPConnection] = queue.SimpleQueue()
        for connection in self._all:
            self._free.put(connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._all:
            connection.close()

    def post_picture(self, build: Build) -> tuple[str, ...]:
        """Posts a picture raw, as multipart and as JSON. Returns the three answers."""
        data = build()
        encoded = json.dumps({"image": base64.b64encode(data).decode()}).encode()
        disposition = b'Content-Disposition: form-data; name="image"; filename="picture"'
        edge = f"--{_BOUNDARY}".encode()
        form = b"%b\r\n%b\r\n\r\n%b\r\n%b--\r\n" % (edge, disposition, data, edge)
        connection = self._free.get()
        try:
            return (
                _post(connection, "application/octet-stream", data),
                _post(connection, f"multipart/form-data; boundary={_BOUNDARY}", form),
                _post(connection, "application/json", encoded),
            )
        finally:
            self._free.put(connection)


def _post(connection: http.client.HTTPConnection, media_type: str, body: bytes) -> str:
    try:
        connection.request("POST", "/v1/classify", body, {"Content-Type": media_type})
        answer = connection.getresponse()
        return describe(answer.status, answer.read())
    except (OSError, http.client.HTTPException) as error:
        connection.close()
        return f"no answer: {type(error).__name__}"


def describe(status: int, body: bytes) -> str:
    """Returns the status with the error code or the predictions, as text for the table."""
    try:
        document = json.loads(body)
    except ValueError:
        return f"{status} -"
    if not isinstance(document, dict):
        return f"{status} -"
    if "results" in document:
        return f"{status} [{'; '.join(_outcome(one) for one in document['results'])}]"
    return f"{status} {_outcome(document)}"


def _outcome(document: dict[str, Any]) -> str:
    if "error" in document:
        return f"{document['error']['status']} {document['error']['code']}"
    if "predictions" not in document:
        return str(document.get("code", "-"))
    ranked = [(one["probability"], one["label"]) for one in document["predictions"]]
    if ranked != sorted(ranked, key=lambda pair: -pair[0]):
        return f"unordered {ranked}"
    # Sorted by label, because equal probabilities can come in any order.
    return " ".join(f"{label}={p:.2f}" for p, label in sorted(ranked, key=lambda r: r[1])) or "none"


# --- requests -------------------------------------------------------------------------------------


def _exchange(port: int, stream: Stream) -> tuple[str, ...]:
    """Sends a stream and returns all answers, in order, until the server closes."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), _PATIENCE_S) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(ConnectionError):
            for piece in stream.pieces:
                connection.sendall(piece)
            if stream.hangs_up:
                connection.shutdown(socket.SHUT_WR)
            elif not stream.waits:
                connection.sendall(NEXT)
        try:
            while piece := connection.recv(65_536):
                received += piece
        except ConnectionError:
            pass
        except TimeoutError:
            return (f"{_answers_in(received)}, still open",)
    return (_answers_in(received),)


def _answers_in(received: bytes) -> str:
    answers: list[str] = []
    while received:
        top, found, rest = received.partition(b"\r\n\r\n")
        words = top.split(b"\r\n", 1)[0].split(b" ")
        if not found or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
            return ", ".join([*answers, f"{len(received)} bytes that are no answer"])
        split = (line.partition(b":") for line in top.split(b"\r\n")[1:])
        fields = {name.strip().lower(): value.strip() for name, _, value in split}
        length = int(fields.get(b"content-length", 0))
        if not rest or rest.startswith(b"HTTP/1."):
            length = 0  # an answer to HEAD has no body
        body, received = rest[:length], rest[length:]
        is_next = fields.get(b"x-request-id") == NEXT_ID.encode()
        answers.append(("next " if is_next else "") + describe(int(words[1]), body))
    return ", ".join(_counted(answers)) or "closed"


def _counted(answers: list[str]) -> Iterator[str]:
    """Merges runs of equal answers into one with a count."""
    i = 0
    while i < len(answers):
        end = i
        while end < len(answers) and answers[end] == answers[i]:
            end += 1
        yield answers[i] if end == i + 1 else f"{end - i} x {answers[i]}"
        i = end


# --- the table ------------------------------------------------------------------------------------


def write_table(answers: Answers) -> None:
    lines = [HEADER, *("\t".join((name, *texts)) for name, texts in sorted(answers.items()))]
    TABLE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_table() -> Answers:
    _, *lines = TABLE.read_text(encoding="utf-8").splitlines()
    return {name: tuple(texts) for name, *texts in (line.split("\t") for line in lines)}


def differences(before: Answers, now: Answers) -> dict[str, str]:
    """Returns a description of each difference, by case."""
    found = {}
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if old is None or new is None:
            found[name] = "is new" if old is None else "is gone"
        elif len(old) != len(new) or not all(map(_alike, old, new)):
            found[name] = f"was {' | '.join(old)}, is {' | '.join(new)}"
    return found


def _alike(old: str, new: str) -> bool:
    olds, news = old.split(" "), new.split(" ")
    return len(olds) == len(news) and all(map(_same_word, olds, news))


def _same_word(old: str, new: str) -> bool:
    (label, sign, was), (other, _, now) = old.partition("="), new.partition("=")
    if not sign or label != other:
        return old == new
    return abs(float(was.rstrip(";],")) - float(now.rstrip(";],"))) <= TOLERANCE
