import logging
import sys

import pytest

from training.system.console import log_to_stderr, terminal

log = logging.getLogger("training.some.module")


@pytest.fixture
def isatty(monkeypatch):
    def pretend(value):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: value, raising=False)

    return pretend


def test_log_is_plain_lines_on_standard_error(capsys, isatty):
    isatty(False)

    with log_to_stderr():
        log.info("head: %d passes", 3)
        bar = terminal()

    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "head: 3 passes\n")
    assert bar is None


def test_log_on_a_terminal_shares_the_console_with_the_progress_bar(capsys, isatty):
    isatty(True)

    with log_to_stderr():
        bar = terminal()
        log.info("[head] validation top-1 93%")

    assert bar
    assert bar.stderr
    assert "[head] validation top-1 93%" in capsys.readouterr().err


def test_other_processes_of_a_run_log_warnings_only(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")

    with log_to_stderr():
        log.info("logged by the first process too")
        log.warning("a.jpg is left out")

    assert capsys.readouterr().err == "a.jpg is left out\n"


def test_log_to_stderr_restores_the_logger():
    logger = logging.getLogger("training")
    before = (list(logger.handlers), logger.level, logger.propagate)

    with log_to_stderr():
        pass

    assert (logger.handlers, logger.level, logger.propagate) == before
