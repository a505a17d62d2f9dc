"""The whole command against servers that behave and that do not."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from convserve.commands.loadtest import loadtest
from convserve.loadtest.results import Result as Found
from convserve.loadtest.results import read_result
from tests import tinymodel
from tests.convserve.loadtest.sending.scripted import Script, read_request, response, serving

MET, MISSED, USAGE, INVALID = 0, 1, 2, 3
SHORT = ["--duration", "0.5s", "--warmup", "0.1s", "--timeout", "2s"]
GENEROUS = ["--objective", "p99<2s,errors<0.1%"]  # what a busy machine keeps, too


def predictions(label: str) -> bytes:
    return json.dumps({"predictions": [{"label": label, "index": 0, "probability": 0.9}]}).encode()


OK = response(predictions("red"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("red", "green", "blue"):
        (folder / f"{name}.png").write_bytes(tinymodel.picture(name))
    return folder


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., tuple[Result, Found | None]]:
    """Runs the command; returns how it ended and the result it wrote."""

    def run(*arguments: object) -> tuple[Result, Found | None]:
        output = tmp_path / "output"
        command = [str(one) for one in arguments]
        ended = CliRunner().invoke(loadtest, [*command, "--output", str(output)])
        if not (output / "result.json").exists():
            return ended, None
        assert "<html" in (output / "report.html").read_text(encoding="utf-8")
        return ended, read_result(output)

    return run


def url(port: int, path: str = "") -> str:
    return f"http://127.0.0.1:{port}{path}"


def always(answer: bytes) -> Script:
    def script(sock: socket.socket) -> None:
        while read_request(sock):
            sock.sendall(answer)

    return script


def after(n: int, script: Script) -> Script:
    """Answers `n` requests of all connections well, and the others as the script does."""
    left = iter(range(n))
    lock = threading.Lock()

    def whole(sock: socket.socket) -> None:
        while True:
            with lock:
                good = next(left, None) is not None
            if not good:
                script(sock)
                return
            if not read_request(sock):
                return
            sock.sendall(OK)

    return whole


@pytest.mark.parametrize(
    "profile",
    [
        ["--rate", "50"],
        ["--clients", "3"],
        ["--rate", "50", "--arrivals", "even", "--processes", "2"],
        ["--profile", "spike", "--rate", "20", "--peak", "60", "--duration", "3s"],
        ["--profile", "soak", "--rate", "50"],
    ],
    ids=["open", "closed", "even-by-two", "spike", "soak"],
)
def test_loadtest_good_server_meets_the_objective(load, photos, profile):
    with serving(always(OK)) as port:
        ended, found = load(url(port), photos, *SHORT, *GENEROUS, *profile)

    assert ended.exit_code in (MET, INVALID), ended.output  # a busy machine may delay the sender
    assert found is not None
    assert found.objective_met is True
    assert found.summary is not None
    assert found.summary.n_ok == found.summary.n_sent == found.summary.latency.n
    assert sum(part.n_sent for part in found.intervals) == found.summary.n_sent
    assert found.errors == []


def test_loadtest_ramp_finds_the_rate_that_a_server_keeps(load, photos):
    """The server refuses what comes within 10 ms of an accepted request: about 100 a second."""
    lock = threading.Lock()
    refusal = response(b'{"code": "overloaded"}', status="503 Busy")
    last = [0.0]

    def script(sock: socket.socket) -> None:
        while read_request(sock):
            with lock:
                now = time.monotonic()
                accepted = now - last[0] >= 0.01
                last[0] = now if accepted else last[0]
            sock.sendall(OK if accepted else refusal)

    arguments = ["--rate", "20", "--arrivals", "even", "--objective", "errors<20%"]
    with serving(script) as port:
        _, found = load(url(port), photos, "--profile", "ramp", *SHORT, *arguments)

    assert found is not None
    assert found.capacity is not None
    assert 40 < found.capacity.rate_per_s < 180
    assert len(found.trials) >= 4
    assert found.capacity.missed_from_per_s is not None


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (response(b"<html>hi</html>", "Content-Type: text/html"), ["body kind 'raw'", "<html>"]),
        (response(b"<h1>none</h1>", status="404 Not Found"), ["404", "/v1/classify", "--path"]),
        (response(b'{"code": "draining", "detail": "no"}', status="503 No"), ["503", "draining"]),
    ],
    ids=["html", "another-servers-404", "not-ready"],
)
def test_loadtest_server_that_does_not_classify_is_said(load, photos, answer, words):
    with serving(always(answer)) as port:
        ended, found = load(url(port), photos, *SHORT, "--rate", "10")

    assert ended.exit_code == INVALID
    assert found is not None
    assert not found.valid
    assert found.summary is None
    assert found.objective_met is None
    assert all(word in ended.output for word in words), ended.output


def test_loadtest_nothing_listens(load, photos):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    ended, found = load(url(port), photos, *SHORT, "--rate", "10")

    assert ended.exit_code == INVALID
    assert found is not None
    assert found.invalid_because == [
        f"127.0.0.1:{port} does not answer: connection refused: Connection refused"
    ]


def test_loadtest_unknown_host(load, photos):
    ended, _ = load("http://no-such-host.invalid", photos, *SHORT, "--rate", "10")

    assert ended.exit_code == INVALID
    assert "no-such-host.invalid" in ended.output


@pytest.mark.parametrize(
    ("script", "code"),
    [
        (lambda sock: sock.close(), "connection_lost"),
        (lambda sock: read_request(sock) and sock.recv(1), "timeout"),
        (
            lambda sock: read_request(sock) and sock.sendall(b"HTTP/1.1 200 OK\r\n"),
            "connection_lost",
        ),
        (always(response(b"oops", status="500 No")), "http_500"),
        (always(response(predictions("blue"))), "wrong_answer"),
    ],
    ids=["resets", "hangs", "cuts-answers", "fails", "answers-differently"],
)
def test_loadtest_server_that_fails_half_way_misses_the_objective(load, photos, script, code):
    one = photos / "red.png"

    with serving(after(20, script)) as port:
        ended, found = load(url(port), one, *SHORT, "--timeout", "0.5s", "--rate", "50")

    assert found is not None
    assert found.objective_met is False
    assert ended.exit_code in (MISSED, INVALID), ended.output
    assert code in {error.code for error in found.errors}
    assert found.summary is not None
    assert found.summary.n_ok + found.summary.n_errors == found.summary.n_sent


def test_loadtest_slower_than_the_timeout_shows_no_percentiles(load, photos):
    def hang(sock: socket.socket) -> None:
        while read_request(sock):
            pass

    with serving(after(1, hang)) as port:
        _, found = load(url(port), photos, *SHORT, "--timeout", "0.3s", "--rate", "20")

    assert found is not None
    assert found.summary is not None
    assert found.summary.latency.p50_ms is None
    assert found.summary.latency.n_unanswered == found.summary.n_sent


def test_loadtest_rate_out_of_reach_is_not_valid(load, photos):
    with serving(always(OK)) as port:
        ended, found = load(url(port), photos, *SHORT, "--timeout", "1s", "--rate", "1000000")

    assert ended.exit_code == INVALID
    assert found is not None
    assert "--processes" in "".join(found.invalid_because)


def test_loadtest_broken_pictures_are_refused_and_hurt_nobody(load, photos):
    refusal = response(b'{"code": "unsupported_media_type"}', status="415 No")

    def script(sock: socket.socket) -> None:
        while request := read_request(sock):
            intact = request.partition(b"\r\n\r\n")[2] in pictures
            sock.sendall(OK if intact else refusal)

    pictures = [file.read_bytes() for file in photos.iterdir()]
    with serving(script) as port:
        _, found = load(url(port), photos, *SHORT, *GENEROUS, "--rate", "80", "--broken", "30%")

    assert found is not None
    assert found.objective_met is True
    assert found.checks.n_broken > 0
    assert found.checks.n_broken_accepted == 0
    assert {(error.code, error.broken) for error in found.errors} == {
        ("unsupported_media_type", True)
    }


def test_loadtest_broken_pictures_that_are_accepted_are_errors(load, photos):
    with serving(always(OK)) as port:
        ended, found = load(url(port), photos, *SHORT, "--rate", "50", "--broken", "50%")

    assert found is not None
    assert found.objective_met is False
    assert found.checks.n_broken_accepted == found.checks.n_broken > 0
    assert "broken pictures were accepted" in ended.output


def test_loadtest_expected_class_that_differs_is_an_error(load, photos, tmp_path):
    expect = tmp_path / "expect.json"
    expect.write_text('{"red.png": "red", "green.png": "green"}')

    with serving(always(OK)) as port:
        ended, found = load(url(port), photos, *SHORT, "--rate", "50", "--expect", expect)

    assert ended.exit_code in (MISSED, INVALID)
    assert found is not None
    assert found.checks.n_unexpected
    assert found.checks.examples == ["green.png: 'red', expected 'green'"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["http://127.0.0.1:1", "--objective", "fast"], "'fast' is not understood"),
        (["http://127.0.0.1:1", "EMPTY"], "EMPTY"),
        (["http://127.0.0.1:1", "missing.jpg"], "missing.jpg"),
        (["ftp://127.0.0.1"], "http://HOST:PORT"),
        (["http://127.0.0.1:99999"], "no address"),
        (["http://"], "http://HOST:PORT"),
        (["http://127.0.0.1:1", "--rate", "1", "--clients", "1"], "--clients"),
        (["http://127.0.0.1:1", "--profile", "steady"], "needs --rate or --clients"),
        (["http://127.0.0.1:1", "--profile", "spike"], "needs the usual rate"),
        (["http://127.0.0.1:1", "--duration", "long"], "write 90, 500ms, 90s, 5m or 1h"),
        (["http://127.0.0.1:1", "--broken", "100%"], "write 1%"),
        (["http://[::1", "--rate", "1"], "no address"),
        (["http://127.0.0.1:1", "--header", "nothing"], "'Name: value'"),
        (["http://127.0.0.1:1", "PHOTOS", "--per-request", "2"], "holds one picture"),
        (["http://127.0.0.1:1", "PHOTOS", "--body", "tfserving"], "needs the name of a model"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_loadtest_usage_errors_say_what_to_write(load, photos, tmp_path, arguments, words):
    (tmp_path / "EMPTY").mkdir()
    places = {"EMPTY": tmp_path / "EMPTY", "PHOTOS": photos}

    ended, found = load(*(places.get(one, one) for one in arguments))

    assert ended.exit_code == USAGE
    assert found is None
    assert words in " ".join(ended.output.split())


def test_loadtest_ctrl_c_ends_it_early_with_a_result(load, photos):
    seen = iter(range(1_000_000))

    def script(sock: socket.socket) -> None:
        while read_request(sock):
            sock.sendall(OK)
            if next(seen) == 30:
                os.kill(os.getpid(), signal.SIGINT)

    with serving(script) as port:
        _, found = load(url(port), photos, "--warmup", "0", "--duration", "1h", "--rate", "50")

    assert found is not None
    assert found.interrupted
    assert found.summary is not None
    assert 20 <= found.summary.n_ok == found.summary.n_sent
    assert found.summary.seconds < 60


def test_loadtest_ramp_ended_in_its_first_trial_has_no_result_of_it(load, photos):
    seen = iter(range(1_000_000))

    def script(sock: socket.socket) -> None:
        while read_request(sock):
            sock.sendall(OK)
            if next(seen) == 30:
                os.kill(os.getpid(), signal.SIGINT)

    ramp = ["--profile", "ramp", "--warmup", "0", "--duration", "1h", "--rate", "50"]
    with serving(script) as port:
        ended, found = load(url(port), photos, *ramp)

    assert ended.exit_code == INVALID
    assert found is not None
    assert found.interrupted
    assert (found.trials, found.capacity, found.objective_met) == ([], None, None)
    assert "ended before its first trial was complete" in ended.output


def test_loadtest_broken_picture_that_costs_its_neighbours_their_answers_is_an_error(load, photos):
    two = response(
        json.dumps(
            {"results": [json.loads(predictions("red")), json.loads(predictions("red"))]}
        ).encode()
    )
    refusal = response(b'{"code": "image_truncated"}', status="422 No")

    def script(sock: socket.socket) -> None:
        while request := read_request(sock):
            sock.sendall(two if request.count(b"Content-Type: image/png") == 2 else refusal)

    arguments = ["--body", "multipart", "--per-request", "2", "--broken", "40%"]
    with serving(script) as port:
        _, found = load(url(port), photos, *SHORT, "--rate", "50", *arguments)

    assert found is not None
    assert found.objective_met is False
    assert "neighbours_refused" in {error.code for error in found.errors}


def test_loadtest_host_header_of_the_user_replaces_ours(load, photos):
    seen: list[bytes] = []

    def script(sock: socket.socket) -> None:
        while request := read_request(sock):
            seen.append(request)
            sock.sendall(OK)

    with serving(script) as port:
        load(url(port), photos, *SHORT, "--clients", "1", "--header", "Host: models.example.org")

    head = seen[0].lower()
    assert head.count(b"\r\nhost:") == 1
    assert b"host: models.example.org" in head


def test_loadtest_file_names_that_are_no_text_are_written(load, photos):
    odd = os.fsdecode(b"\xff.png")
    (photos / "red.png").rename(photos / odd)

    with serving(always(response(b"<html>"))) as port:
        ended, found = load(url(port), photos / odd, *SHORT, "--clients", "1")

    assert ended.exit_code == INVALID
    assert found is not None


def test_loadtest_sender_that_is_killed_leaves_what_was_seen(load, photos):
    seen = iter(range(1_000_000))

    def script(sock: socket.socket) -> None:
        while read_request(sock):
            sock.sendall(OK)
            if next(seen) == 40:
                [victim] = _children_with("loadtest.sending")
                os.kill(victim, signal.SIGKILL)

    with serving(script) as port:
        ended, found = load(url(port), photos, "--warmup", "0", "--duration", "1h", "--rate", "50")

    assert ended.exit_code == INVALID
    assert found is not None
    assert "a sender ended early: status -9" in found.invalid_because  # a busy machine adds others
    assert not found.interrupted
    assert found.summary is not None
    assert found.summary.n_ok > 20


def _children_with(words: str) -> list[int]:
    tasks = Path("/proc/self/task").iterdir()
    pids = [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
    return [pid for pid in pids if words in Path(f"/proc/{pid}/cmdline").read_text()]


def test_loadtest_command_line_is_kept_without_secrets(load, photos, monkeypatch):
    monkeypatch.setattr(
        "sys.argv",
        [
            "convserve",
            "loadtest",
            "URL",
            "--header",
            "Authorization: Bearer abc",
            "--header=X-A: b",
        ],
    )
    with serving(always(OK)) as port:
        _, found = load(url(port), photos, *SHORT, "--clients", "1")

    assert found is not None
    assert found.settings.command == (
        "convserve loadtest URL --header 'Authorization: ...' '--header=X-A: b'"
    )
