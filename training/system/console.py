"""Prints the log: plain lines, or rich's above the progress bar on a terminal."""

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
def log_to_stderr() -> Iterator[None]:
    handler = _handler()
    level, propagate = _LOGGER.level, _LOGGER.propagate
    _LOGGER.addHandler(handler)
    # Under torchrun the other processes would repeat the lines of the first. Warnings may differ.
    _LOGGER.setLevel(logging.INFO if is_first_process() else logging.WARNING)
    _LOGGER.propagate = False  # if a library configures the root logger, each line appears twice
    try:
        yield
    finally:
        _LOGGER.removeHandler(handler)
        _LOGGER.setLevel(level)
        _LOGGER.propagate = propagate


def terminal() -> Console | None:
    """Returns the console of the log, for a progress bar below it; None if it is not a terminal."""
    handlers = (one for one in _LOGGER.handlers if isinstance(one, RichHandler))
    return next((handler.console for handler in handlers), None)


def _handler() -> logging.Handler:
    if not sys.stderr.isatty():
        return logging.StreamHandler()  # the default format is "%(message)s"
    return RichHandler(
        console=Console(stderr=True),
        show_time=False,
        show_level=False,
        show_path=False,
        highlighter=NullHighlighter(),  # it would colour the 1 of "top-1" as a number
    )
