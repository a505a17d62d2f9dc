"""Progress of a run: a live display, plain lines, a JSONL log, TensorBoard.

Each is a `Callback`. Only the first process has any.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from rich.console import Console

from training.learning.history import EpochRecord, RunLength, StepRecord
from training.system.console import terminal
from training.system.files import write_whole

log = logging.getLogger(__name__)

LOG_FILE: Final = "log.jsonl"
TENSORBOARD_FOLDER: Final = "tensorboard"
_PLAIN_EVERY_S: Final = 30.0
_EPOCH_SCALARS: Final = (
    "train_loss",
    "train_top1",
    "validation_nll",
    "validation_nll_calibrated",
    "validation_top1",
)


class Callback(Protocol):
    """Called after every step and every epoch."""

    def on_step(self, record: StepRecord) -> None: ...
    def on_epoch(self, record: EpochRecord, best: bool) -> None: ...  # best so far
    def close(self) -> None: ...


class JsonLog:
    """Appends one JSON object per line: {"event": "step", ...} and {"event": "epoch", ...}."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Line buffered, so that a killed process loses no line.
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def on_step(self, record: StepRecord) -> None:
        self._write("step", dataclasses.asdict(record))

    def on_epoch(self, record: EpochRecord, best: bool) -> None:
        self._write("epoch", {**dataclasses.asdict(record), "best": best})

    def close(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def _write(self, event: str, values: dict[str, Any]) -> None:
        # JSON has no infinity, the gradient norm of a skipped float16 step.
        known = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        self._file.write(json.dumps({"event": event, **known}) + "\n")


def cut_log(path: Path, step: int, epochs: int) -> None:
    """Removes the steps and epochs after a checkpoint, so that a resumed run logs each once.

    The file may be missing, and its last line may be incomplete.
    """
    if not path.exists():
        return

    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            known = entry["step"] <= step if entry["event"] == "step" else entry["epoch"] <= epochs
        except (ValueError, KeyError, TypeError):
            continue
        if known:
            kept.append(line)
    write_whole(path, "".join(f"{line}\n" for line in kept).encode())


class TensorBoardLog:
    """Writes scalars for TensorBoard."""

    def __init__(self, folder: Path, step: int) -> None:
        module: Any = importlib.import_module("torch.utils.tensorboard")
        # A resumed run starts after this step; TensorBoard hides what an earlier one wrote later.
        self._writer: Any = module.SummaryWriter(str(folder), purge_step=step + 1)

    def on_step(self, record: StepRecord) -> None:
        for name in ("loss", "learning_rate", "gradient_norm", "images_per_s"):
            self._writer.add_scalar(f"step/{name}", getattr(record, name), record.step)

    def on_epoch(self, record: EpochRecord, best: bool) -> None:  # noqa: ARG002 - a Callback
        for name in _EPOCH_SCALARS:
            self._writer.add_scalar(f"epoch/{name}", getattr(record, name), record.step)

    def close(self) -> None:
        self._writer.close()


class PlainDisplay:
    """Logs a line per epoch, and one every 30 s during long epochs; for files and pipes."""

    def __init__(self, extent: RunLength, clock: Callable[[], float] = time.monotonic) -> None:
        self._extent = extent
        self._clock = clock
        self._started_s = self._last_line_s = clock()

    def on_step(self, record: StepRecord) -> None:
        now_s = self._clock()
        if now_s - self._last_line_s < _PLAIN_EVERY_S:
            return
        self._last_line_s = now_s

        done = record.step - self._extent.step
        left_s = (now_s - self._started_s) / done * (self._extent.steps - record.step)
        log.info(
            "epoch %d/%d, step %d/%d: loss %.4f, %.0f images/s, %s left",
            record.epoch,
            self._extent.epochs,
            record.step,
            self._extent.steps,
            record.loss,
            record.images_per_s,
            clock_text(left_s),
        )

    def on_epoch(self, record: EpochRecord, best: bool) -> None:
        self._last_line_s = self._clock()
        log.info("%s", epoch_text(record, self._extent, best=best))

    def close(self) -> None:
        pass


class RichDisplay:
    """Shows a progress bar on a terminal, below a line for each epoch.

    The log must go to the same console, so that its lines stay above the bar.
    """

    def __init__(self, extent: RunLength, console: Console) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self._extent = extent
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}/" + str(extent.epochs)),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[rate]:.0f} images/s"),
            TimeRemainingColumn(),
            TextColumn("loss {task.fields[loss]}  validation {task.fields[top1]}"),
            console=console,
        )
        self._task = self._progress.add_task(
            "training",
            total=extent.steps,
            completed=extent.step,
            epoch=extent.step // extent.epoch_steps + 1,
            rate=0.0,
            loss="-",
            top1="-",
        )
        self._progress.start()

    def on_step(self, record: StepRecord) -> None:
        self._progress.update(
            self._task,
            completed=record.step,
            epoch=record.epoch,
            rate=record.images_per_s,
            loss=f"{record.loss:.3f}",
        )

    def on_epoch(self, record: EpochRecord, best: bool) -> None:
        self._progress.update(self._task, top1=f"{100 * record.validation_top1:.1f}%")
        log.info("%s", epoch_text(record, self._extent, best=best))

    def close(self) -> None:
        self._progress.stop()


def epoch_text(record: EpochRecord, extent: RunLength, *, best: bool) -> str:
    return (
        f"epoch {record.epoch}/{extent.epochs}: loss {record.train_loss:.4f}, validation top-1 "
        f"{100 * record.validation_top1:.2f}%, NLL {record.validation_nll:.4f} "
        f"({record.validation_nll_calibrated:.4f} at temperature {record.validation_temperature:.2f}), "
        f"{record.images_per_s:.0f} images/s, {record.seconds:.1f} s{', best so far' * best}"
    )


def clock_text(seconds: float) -> str:
    """Returns a duration such as "1:02:03" or "2:03"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def open_callbacks(folder: Path, extent: RunLength) -> Sequence[Callback]:
    callbacks: list[Callback] = [JsonLog(folder / LOG_FILE)]
    callbacks.append(TensorBoardLog(folder / TENSORBOARD_FOLDER, extent.step))
    console = terminal()
    callbacks.append(PlainDisplay(extent) if console is None else RichDisplay(extent, console))
    return callbacks
