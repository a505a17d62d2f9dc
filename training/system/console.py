"""How the command shows its log: plain lines, or on a terminal rich's, above the live bar."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler

from training.system.environment import is_first_process

_LOGGER = logging.getLogger("training")


@contextmanager
def shown_log() -> Iterator[None]:
    """Shows on standard error what `training` logs, until the end of the context."""
    handler = _handler()
    level, propagate = _LOGGER.level, _LOGGER.propagate
    _LOGGER.addHandler(handler)
    # Other processes would repeat the first one's lines; what they warn of is their own.
    _LOGGER.setLevel(logging.INFO if is_first_process() else logging.WARNING)
    _LOGGER.propagate = False  # a library that configures the root logger would double each line
    try:
        yield
    finally:
        _LOGGER.removeHandler(handler)
        _LOGGER.setLevel(level)
        _LOGGER.propagate = propagate


def terminal() -> Console | None:
    """Returns the console that shows the log, for a live bar below it; None if it is no terminal."""
    handlers = (one for one in _LOGGER.handlers if isinstance(one, RichHandler))
    return next((handler.console for handler in handlers), None)


def _handler() -> logging.Handler:
    if not sys.stderr.isatty():
        return logging.StreamHandler()  # as plain as "%(message)s"
    return RichHandler(
        console=Console(stderr=True),
        show_time=False,
        show_level=False,
        show_path=False,
        highlighter=NullHighlighter(),  # the 1 of "top-1" is no number
    )
