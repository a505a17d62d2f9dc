from __future__ import annotations

import threading

import numpy as np
import pytest

from contract.preprocessing import Tensor
from convserve.tuning import (
    MIN_ROUNDS,
    ROUNDS,
    Bench,
    Configuration,
    Sample,
    Samples,
    changed_settings,
    choose,
    configurations,
    schedule,
)
from tests.fakes import FakeEngine

PICTURES = [b"0", b"1", b"2"]
ONE = Configuration(lanes=1, threads=1, batch_size=1)
TWO = Configuration(lanes=1, threads=1, batch_size=2)


class TickingClock:
    """A clock that advances by 10 ms with each call."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self._lock = threading.Lock()

    def __call__(self) -> float:
        with self._lock:
            self._now_s += 0.01
            return self._now_s


class RecordingPrepare:
    """Prepares pictures and records them with the threads that did it."""

    def __init__(self) -> None:
        self.prepared: list[bytes] = []
        self.threads: set[str] = set()

    def __call__(self, image: bytes) -> Tensor:
        self.prepared.append(image)
        self.threads.add(threading.current_thread().name)
        return np.array([float(image)], np.float32)


def make_bench(engine: FakeEngine, prepare: RecordingPrepare, prepare_threads: int = 0) -> Bench:
    return Bench(
        engine,
        prepare,
        PICTURES,
        prepare_threads=prepare_threads,
        clock=TickingClock(),
        cpu_clock=TickingClock(),
    )


@pytest.mark.parametrize(
    ("default", "cpus", "on_cores", "expected"),
    [
        ((2, 1, 8), 2, True, ["2.1.1248", "1.1.1248", "1.2.1"]),
        ((4, 1, 6), 4, True, ["4.1.1246", "1.1.1246", "1.4.1"]),
        ((1, 1, 1), 1, True, ["1.1.1"]),
        ((1, 1, 4), 16, False, ["1.1.124", "2.1.124"]),
    ],
    ids=["powers_of_two", "odd_largest", "one_core_and_fixed_batch", "device"],
)
def test_configurations_start_with_the_defaults_lanes(default, cpus, on_cores, expected):
    curves: dict[str, str] = {}
    for one in configurations(Configuration(*default), cpus, on_cores=on_cores):
        pair = f"{one.lanes}.{one.threads}"
        curves[pair] = curves.get(pair, "") + str(one.batch_size)

    assert [f"{pair}.{sizes}" for pair, sizes in curves.items()] == expected


def test_schedule_spends_the_time_on_all_rounds():
    assert schedule([0.001, 0.002], seconds=18) == (ROUNDS, 1.0, 18.0)


@pytest.mark.parametrize(
    ("batch_s", "rounds", "expected_s"),
    [(0.8, 6, 9.8), (60.0, MIN_ROUNDS, 600.0)],
    ids=["fewer", "fewest"],
)
def test_schedule_of_slow_network_has_fewer_rounds(batch_s, rounds, expected_s):
    n_rounds, _, takes_s = schedule([batch_s], seconds=10)

    assert n_rounds == rounds
    assert takes_s == pytest.approx(expected_s)


def test_bench_prepares_between_runs_but_not_between_bare_runs():
    engine, prepare = FakeEngine(), RecordingPrepare()
    bench = make_bench(engine, prepare)

    bench.sample(TWO, 0, 0.08)
    bench.close()

    served, bare = engine.batches[:6], engine.batches[6:]  # 60 ms and 20 ms at 10 ms each
    assert served == [[0, 1], [2, 0], [1, 2]] * 2
    assert bare == [[0, 1]] * 2
    assert len(prepare.prepared) == 12 + 2


def test_bench_sample_measures_the_slice():
    bench = make_bench(FakeEngine(), RecordingPrepare())

    sample = bench.sample(TWO, 0, 0.08)
    bench.close()

    assert sample.images_per_s == pytest.approx(200)
    assert sample.bare_images_per_s == pytest.approx(200)
    assert sample.batch_ms == pytest.approx(10)
    assert sample.cpu_ms == pytest.approx(10 / 12)


def test_bench_slice_has_at_least_one_batch():
    engine = FakeEngine()
    bench = make_bench(engine, RecordingPrepare())

    times_s = bench.warm_up([ONE, TWO])
    bench.close()

    assert [len(batch) for batch in engine.batches] == [1, 2, 1, 2]
    assert times_s == pytest.approx([0.01, 0.01])


@pytest.mark.parametrize(("threads", "wide"), [(1, False), (2, True)])
def test_bench_single_picture_uses_all_cores(threads, wide):
    seen: list[bool] = []

    class RecordingEngine(FakeEngine):
        def run(self, batch, run=None):
            seen.append(run.all_cores)
            return super().run(batch)

    bench = make_bench(RecordingEngine(), RecordingPrepare())
    bench.warm_up([Configuration(lanes=1, threads=threads, batch_size=1)])
    bench.close()

    assert seen == [wide, wide]


def test_bench_runs_lanes_in_parallel():
    engine = FakeEngine()
    meeting = threading.Barrier(2)

    def answer(batch):
        meeting.wait(30)  # fails unless the other lane arrives
        return np.zeros((len(batch), 2), np.float32)

    engine.answer = answer
    bench = make_bench(engine, RecordingPrepare())

    bench.warm_up([Configuration(lanes=2, threads=1, batch_size=1)])
    bench.close()

    assert len(engine.batches) == 4


def test_bench_prepares_in_a_pool_if_asked():
    engine, prepare = FakeEngine(), RecordingPrepare()
    bench = make_bench(engine, prepare, prepare_threads=1)

    bench.warm_up([TWO])
    bench.close()

    assert engine.batches == [[0, 1], [0, 1]]
    assert not any(name.startswith("tune-") for name in prepare.threads)


def test_bench_failure_of_one_lane_interrupts_the_others_and_waits_for_them():
    failing, both = threading.Lock(), threading.Barrier(2)
    interrupted, ended = threading.Event(), threading.Event()

    class HalfBroken(FakeEngine):
        def run(self, _batch, run=None):
            both.wait(30)
            if failing.acquire(blocking=False):
                raise RuntimeError("broken")
            run.on_interrupt(interrupted.set)
            interrupted.wait(30)
            ended.set()
            raise RuntimeError("interrupted")

    bench = make_bench(HalfBroken(), RecordingPrepare())

    with pytest.raises(RuntimeError, match="broken"):
        bench.warm_up([Configuration(lanes=2, threads=1, batch_size=1)])
    bench.close()

    assert interrupted.is_set()
    assert ended.is_set()


# choose

DEFAULT = Configuration(lanes=2, threads=1, batch_size=1)


def rates(*images_per_s: float) -> list[Sample]:
    """Samples from an otherwise idle machine."""
    return [Sample(rate, 1.0, 2e3 / rate, rate) for rate in images_per_s]


def curve(**by_size: list[Sample]) -> Samples:
    """Samples by name: `b4` has batches of 4, `one` has one lane, `wide` one lane with two threads."""
    others = {"one": Configuration(1, 1, 1), "wide": Configuration(1, 2, 1)}
    return {
        others.get(name) or Configuration(2, 1, int(name[1:])): samples
        for name, samples in by_size.items()
    }


BASE = rates(100, 101, 99, 100, 100)


@pytest.mark.parametrize(
    ("samples", "settings"),
    [
        (curve(b1=BASE, b4=rates(101, 100, 100, 101, 99)), {}),
        (curve(b1=BASE, b4=rates(102, 102, 102, 102, 102)), {}),
        (curve(b1=BASE, b4=rates(120, 121, 119, 120, 118)), {"max_batch_size": 4}),
        (curve(b1=BASE, b4=rates(160, 60, 115, 140, 90)), {}),
        (
            curve(b1=rates(100, 50, 200, 80, 90), b4=rates(120, 60, 240, 96, 108)),
            {"max_batch_size": 4},
        ),
        (
            curve(b1=BASE, b2=rates(*[112] * 5), b4=rates(*[124] * 5), b8=rates(*[126] * 5)),
            {"max_batch_size": 4},
        ),
        (
            curve(b1=BASE, wide=rates(*[150] * 5), b4=rates(*[110] * 5)),
            {"max_batch_size": 4},
        ),
        (curve(b1=BASE, one=rates(*[110] * 5)), {"lanes": 1}),
        (curve(b1=BASE, one=rates(*[112] * 5), b4=rates(*[110] * 5)), {"max_batch_size": 4}),
        (curve(b1=BASE, b4=rates(*[80] * 5)), {}),
        (curve(b1=BASE, b4=rates(*[130] * 4, 99)), {}),
        (curve(b1=BASE[:4], b4=rates(*[150] * 4)), {}),
        (curve(b1=BASE, b4=rates(*[150] * 4)), {}),
        (curve(b1=rates(*[100] * 6), b4=rates(*[150] * 5)), {"max_batch_size": 4}),
        (curve(b1=BASE), {}),
        (curve(b4=BASE), {}),
        ({}, {}),
    ],
    ids=[
        "flat",
        "too_little_to_matter",
        "clear_gain",
        "noise",
        "noise_of_whole_rounds_cancels",
        "smallest_batch_that_is_nearly_best",
        "threads_that_no_setting_gives",
        "lanes",
        "default_lanes_before_others",
        "batches_cost",
        "worse_in_one_round",
        "too_few_rounds",
        "too_few_rounds_of_the_rival",
        "interrupted",
        "nothing_to_choose_from",
        "interrupted_before_the_default",
        "nothing_measured",
    ],
)
def test_choose_keeps_the_default_unless_something_is_clearly_faster(samples, settings):
    choice = choose(samples, DEFAULT)

    assert changed_settings(choice.configuration, DEFAULT) == settings


def test_choose_names_the_best_alternative_to_the_default():
    choice = choose(curve(b1=BASE, b2=rates(*[101] * 5), b4=rates(*[90] * 5)), DEFAULT)

    assert (choice.configuration, choice.rival) == (DEFAULT, Configuration(2, 1, 2))
    assert choice.ratios == pytest.approx([1.01, 1, 102 / 99 - 1 / 99, 1.01, 1.01])


def test_choose_keeps_a_large_default():
    large = Configuration(2, 1, 8)

    choice = choose(curve(b1=rates(*[90] * 5), b4=rates(*[101] * 5), b8=BASE), large)

    assert choice.configuration == large


@pytest.mark.parametrize(
    ("share", "on_cores", "batch_size"),
    [(0.9, True, 4), (0.5, True, 1), (0.5, False, 4)],
    ids=["quiet", "busy", "device"],
)
def test_choose_keeps_the_default_if_other_work_took_the_cores(share, on_cores, batch_size):
    samples = {
        Configuration(2, 1, size): [Sample(rate, 1.0, share * 2e3 / rate, rate)] * 5
        for size, rate in ((1, 100.0), (4, 150.0))
    }

    choice = choose(samples, DEFAULT, on_cores=on_cores)

    assert choice.configuration.batch_size == batch_size
    assert choice.rival == Configuration(2, 1, 4)
    assert choice.core_share == pytest.approx(share if on_cores else 1)
