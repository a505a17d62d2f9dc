"""A start that begins again; the process is never replaced here (see tests/e2e/test_proving.py)."""

from __future__ import annotations

import os

import pytest

from convserve.restarting import refused_versions, refusing, restarting_guard
from service.models.starting import EXIT_NOT_SERVABLE
from service.system import process
from service.system.logs import LogWriter

CATS = ("cats", 3, "0" * 64)
DOGS = ("dogs", 1, "1" * 64)


def test_first_start_refuses_nothing():
    assert refused_versions({}) == {}


def test_each_start_refuses_one_more_version():
    first = refusing(CATS, "too slow", {"PATH": "/bin"})

    second = refusing(DOGS, "too large", first)

    assert refused_versions(first) == {CATS: "too slow"}
    assert refused_versions(second) == {CATS: "too slow", DOGS: "too large"}
    assert second["PATH"] == "/bin"


def test_guard_restarts_with_the_version_refused(monkeypatch, capfd):
    environments: list[dict[str, str]] = []
    monkeypatch.setattr(process, "restart", environments.append)
    logs = LogWriter("info")
    logs.start()

    restarting_guard(logs).give_up(CATS, "too slow")

    (environment,) = environments
    assert refused_versions(environment) == {CATS: "too slow"}
    assert environment["PATH"] == os.environ["PATH"]
    assert "starting again without a version" in capfd.readouterr().out


def test_guard_knows_what_earlier_starts_refused(monkeypatch):
    for name, value in refusing(CATS, "too slow", {}).items():
        monkeypatch.setenv(name, value)

    assert restarting_guard(LogWriter("info")).refused == {CATS: "too slow"}


def test_guard_that_cannot_restart_exits_with_the_reason(monkeypatch, capfd):
    def fail(_: object) -> None:
        raise OSError("no such interpreter")

    statuses: list[int] = []
    monkeypatch.setattr(process, "restart", fail)
    monkeypatch.setattr(process, "exit_now", statuses.append)
    logs = LogWriter("info")
    logs.start()

    restarting_guard(logs).give_up(CATS, "too slow")

    assert statuses == [EXIT_NOT_SERVABLE]
    assert capfd.readouterr().err == (
        "convserve: cannot serve: cats/3: too slow; no such interpreter\n"
    )


@pytest.mark.parametrize("reason", ['"quoted"', "línea\nnueva"], ids=["quotes", "not_ascii"])
def test_reasons_survive_the_environment(reason):
    assert refused_versions(refusing(CATS, reason, {})) == {CATS: reason}
