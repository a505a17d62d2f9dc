import dataclasses
import io
import json

import pytest
from rich.console import Console

from training.learning import progress
from training.learning.history import EpochRecord, RunLength, StepRecord, best_of, is_over

RUN_LENGTH = RunLength(epochs=3, epoch_steps=10)


def step(number: int, **changes: object) -> StepRecord:
    record = StepRecord(
        epoch=1 + (number - 1) // 10,
        step=number,
        loss=0.5,
        learning_rate=0.1,
        gradient_norm=2.0,
        n_images=32,
        images_per_s=100.0,
    )
    return dataclasses.replace(record, **changes)  # type: ignore[arg-type]


def epoch(number: int, top1: float = 0.75, nll: float = 0.9) -> EpochRecord:
    return EpochRecord(
        epoch=number,
        step=10 * number,
        train_loss=0.6,
        train_top1=0.8,
        validation_nll=2 * nll,
        validation_nll_calibrated=nll,
        validation_temperature=0.8,
        validation_top1=top1,
        learning_rate=0.1,
        images_per_s=100.0,
        seconds=3.25,
    )


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


class FakeClock:
    def __init__(self):
        self.now_s = 0.0

    def __call__(self):
        return self.now_s


@pytest.mark.parametrize(
    ("metric", "results", "expected"),
    [
        pytest.param("top1", [(0.5, 1.0), (0.9, 2.0), (0.7, 0.1)], 2, id="top1"),
        pytest.param("nll", [(0.5, 1.0), (0.9, 2.0), (0.7, 0.1)], 3, id="nll"),
        pytest.param("top1", [(0.9, 0.5), (0.9, 0.4), (0.9, 0.6)], 2, id="top1-tie-lower-nll"),
        pytest.param("nll", [(0.8, 0.4), (0.9, 0.4)], 2, id="nll-tie-higher-top1"),
        pytest.param("top1", [(0.9, 0.5), (0.9, 0.5)], 1, id="equal-first"),
    ],
)
def test_best_of_picks_by_the_metric(metric, results, expected):
    history = [epoch(i, *result) for i, result in enumerate(results, 1)]

    assert best_of(history, metric).epoch == expected


@pytest.mark.parametrize(
    ("top1s", "patience", "over"),
    [
        pytest.param([], 1, False, id="nothing-yet"),
        pytest.param([0.5, 0.6, 0.6], 2, False, id="best-one-ago"),
        pytest.param([0.6, 0.5, 0.5], 2, True, id="best-two-ago"),
        pytest.param([0.6, 0.5, 0.5], None, False, id="no-patience-set"),
        pytest.param([0.1, 0.2, 0.3, 0.4], 2, True, id="all-epochs"),
    ],
)
def test_is_over_after_all_epochs_or_the_patience(top1s, patience, over):
    history = [epoch(i, top1) for i, top1 in enumerate(top1s, 1)]

    assert is_over(history, 4, "top1", patience) == over


def test_json_log_writes_a_line_for_each_step_and_epoch_at_once(tmp_path):
    path = tmp_path / "new" / "log.jsonl"
    log = progress.JsonLog(path)

    log.on_step(step(1))
    log.on_epoch(epoch(1), best=True)

    found = _lines(path)  # before close(), so that a killed process loses no line
    assert found[0] == {"event": "step", **dataclasses.asdict(step(1))}
    assert found[1] == {"event": "epoch", **dataclasses.asdict(epoch(1)), "best": True}
    log.close()


def test_json_log_writes_null_for_infinity(tmp_path):
    log = progress.JsonLog(tmp_path / "log.jsonl")

    log.on_step(step(1, gradient_norm=float("inf")))
    log.close()

    assert _lines(tmp_path / "log.jsonl")[0]["gradient_norm"] is None


def test_cut_log_keeps_lines_up_to_the_checkpoint_and_drops_a_partial_one(tmp_path):
    path = tmp_path / "log.jsonl"
    log = progress.JsonLog(path)
    for number in range(1, 13):
        log.on_step(step(number))
        if number == 10:
            log.on_epoch(epoch(1), best=True)
    log.close()
    whole = path.read_text()
    path.write_text(whole[:-20])

    progress.cut_log(path, step=10, epochs=0)

    assert [(line["event"], line["step"]) for line in _lines(path)] == [
        ("step", number) for number in range(1, 11)
    ]
    path.write_text(whole)
    progress.cut_log(path, step=11, epochs=1)
    assert path.read_text() == "".join(whole.splitlines(keepends=True)[:12])


def test_cut_log_without_a_log_does_nothing(tmp_path):
    progress.cut_log(tmp_path / "log.jsonl", 1, 1)

    assert list(tmp_path.iterdir()) == []


def test_plain_display_logs_every_half_minute_and_each_epoch(caplog):
    clock = FakeClock()
    display = progress.PlainDisplay(dataclasses.replace(RUN_LENGTH, step=2), clock)

    for number in range(3, 11):
        clock.now_s += 10
        display.on_step(step(number))
    display.on_epoch(epoch(1), best=True)
    display.close()

    assert caplog.messages == [
        "epoch 1/3, step 5/30: loss 0.5000, 100 images/s, 4:10 left",
        "epoch 1/3, step 8/30: loss 0.5000, 100 images/s, 3:40 left",
        "epoch 1/3: loss 0.6000, validation top-1 75.00%, NLL 1.8000 "
        "(0.9000 at temperature 0.80), 100 images/s, 3.2 s, "
        "best so far",
    ]


def test_rich_display_shows_rate_loss_and_accuracy_below_the_log():
    console = Console(file=io.StringIO(), force_terminal=True, width=120, color_system=None)
    display = progress.RichDisplay(RUN_LENGTH, console)

    display.on_step(step(9))
    display.on_epoch(epoch(1), best=False)
    display.on_step(step(11))
    display.close()

    shown = console.file.getvalue()  # type: ignore[attr-defined]
    last = shown[shown.rindex("epoch 2/3") :]
    for part in ("37%", "100 images/s", "loss 0.500", "validation 75.0%"):
        assert part in last


@pytest.mark.parametrize(("seconds", "text"), [(5.4, "0:05"), (125, "2:05"), (3725, "1:02:05")])
def test_clock_text_has_hours_only_if_needed(seconds, text):
    assert progress.clock_text(seconds) == text


@pytest.mark.parametrize(
    ("terminal", "display"),
    [
        pytest.param(Console(file=io.StringIO()), progress.RichDisplay, id="terminal"),
        pytest.param(None, progress.PlainDisplay, id="pipe"),
    ],
)
def test_open_callbacks_shows_a_progress_bar_on_a_terminal_only(
    tmp_path, monkeypatch, terminal, display
):
    monkeypatch.setattr(progress, "terminal", lambda: terminal)

    callbacks = progress.open_callbacks(tmp_path, RUN_LENGTH)
    for callback in callbacks:
        callback.close()

    assert [type(callback) for callback in callbacks] == [
        progress.JsonLog,
        progress.TensorBoardLog,
        display,
    ]


def test_tensorboard_log_has_scalars_and_replaces_those_after_the_checkpoint(tmp_path, monkeypatch):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    writer = pytest.importorskip("tensorboard.summary.writer.event_file_writer")
    # TensorBoard reads files of the same second in the order of their names: 10 before 9.
    monkeypatch.setattr(writer, "_global_uid", writer.AtomicCounter(0))
    first = progress.TensorBoardLog(tmp_path, step=0)
    for number in (1, 2, 3):
        first.on_step(step(number, loss=9.0))
    first.close()

    resumed = progress.TensorBoardLog(tmp_path, step=2)
    resumed.on_step(step(3, loss=1.0))
    resumed.on_epoch(epoch(1), best=True)
    resumed.close()

    found = accumulators.EventAccumulator(str(tmp_path)).Reload()
    assert [(point.step, point.value) for point in found.Scalars("step/loss")] == [
        (1, 9.0),
        (2, 9.0),
        (3, 1.0),
    ]
    assert found.Scalars("epoch/validation_top1")[0].value == 0.75
