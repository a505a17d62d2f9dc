from __future__ import annotations

import threading

import numpy as np
import pytest

from contract.preprocessing import Tensor
from convserve.tuning.measuring import (
    MIN_ROUNDS,
    ROUNDS,
    Bench,
    Configuration,
    Schedule,
    configurations,
    schedule,
)
from tests.fakes import FakeEngine

PICTURES = [b"0", b"1", b"2"]
ONE = Configuration(lanes=1, threads=1, batch_size=1)
TWO = Configuration(lanes=1, threads=1, batch_size=2)


class TickingClock:
    """Seconds that pass by 10 ms at each look."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self._lock = threading.Lock()

    def __call__(self) -> float:
        with self._lock:
            self._now_s += 0.01
            return self._now_s


class Kitchen:
    """Prepares pictures and notes which and on which thread."""

    def __init__(self) -> None:
        self.prepared: list[bytes] = []
        self.threads: set[str] = set()

    def __call__(self, image: bytes) -> Tensor:
        self.prepared.append(image)
        self.threads.add(threading.current_thread().name)
        return np.array([float(image)], np.float32)


def make_bench(engine: FakeEngine, kitchen: Kitchen, prepare_threads: int = 0) -> Bench:
    return Bench(
        {1: engine},
        kitchen,
        PICTURES,
        prepare_threads=prepare_threads,
        clock=TickingClock(),
        cpu_clock=TickingClock(),
    )


@pytest.mark.parametrize(
    ("default", "largest", "pairs", "expected"),
    [
        ((2, 1, 1), 8, [(1, 1), (2, 1)], ["2.1.1248", "1.1.1248"]),
        ((2, 1, 6), 8, [(2, 1), (1, 2)], ["2.1.12468", "1.2.12468"]),
        ((2, 1, 3), 3, [(1, 1)], ["2.1.123", "1.1.123"]),
        ((1, 1, 1), 1, [(1, 1), (1, 1)], ["1.1.1"]),
    ],
    ids=["powers_of_two", "odd_default", "odd_largest", "one_core_and_fixed_batch"],
)
def test_configurations_begin_with_the_defaults_lanes(default, largest, pairs, expected):
    chosen = configurations(Configuration(*default), largest, pairs)

    curves: dict[str, str] = {}
    for one in chosen:
        pair = f"{one.lanes}.{one.threads}"
        curves[pair] = curves.get(pair, "") + str(one.batch_size)
    assert [f"{pair}.{sizes}" for pair, sizes in curves.items()] == expected


def test_schedule_spends_the_time_on_all_rounds():
    plan = schedule({ONE: 0.001, TWO: 0.002}, seconds=18)

    assert plan == Schedule(ROUNDS, slice_s=1.0, expected_s=18.0)


@pytest.mark.parametrize(
    ("batch_s", "rounds", "expected_s"),
    [(0.8, 6, 9.8), (60.0, MIN_ROUNDS, 600.0)],
    ids=["fewer", "fewest"],
)
def test_schedule_of_slow_network_has_fewer_rounds(batch_s, rounds, expected_s):
    plan = schedule({ONE: batch_s}, seconds=10)

    assert plan.rounds == rounds
    assert plan.expected_s == pytest.approx(expected_s)


def test_bench_prepares_between_runs_and_not_between_bare_ones():
    engine, kitchen = FakeEngine(), Kitchen()
    bench = make_bench(engine, kitchen)

    list(bench.rounds([TWO], Schedule(rounds=1, slice_s=0.08, expected_s=0.0)))
    bench.close()

    served, bare = engine.batches[:6], engine.batches[6:]  # 60 ms and 20 ms at 10 ms each
    assert served == [[0, 1], [2, 0], [1, 2]] * 2
    assert bare == [[0, 1]] * 2
    assert len(kitchen.prepared) == 12 + 2


def test_bench_sample_is_of_the_slice():
    bench = make_bench(FakeEngine(), Kitchen())

    ((_, sample),) = bench.rounds([TWO], Schedule(rounds=1, slice_s=0.08, expected_s=0.0))
    bench.close()

    assert sample.images_per_s == pytest.approx(200)
    assert sample.bare_images_per_s == pytest.approx(200)
    assert sample.batch_ms == pytest.approx(10)
    assert sample.cpu_ms == pytest.approx(10 / 12)


def test_bench_slice_has_a_batch_at_least():
    engine = FakeEngine()
    bench = make_bench(engine, Kitchen())

    took_s = bench.warm_up([ONE, TWO])
    bench.close()

    assert [len(batch) for batch in engine.batches] == [1, 2, 1, 2]
    assert list(took_s.values()) == pytest.approx([0.01, 0.01])


def test_bench_configurations_take_turns():
    bench = make_bench(FakeEngine(), Kitchen())

    rounds = bench.rounds([ONE, TWO], Schedule(rounds=3, slice_s=0.01, expected_s=0.0))
    order = [configuration for configuration, _ in rounds]
    bench.close()

    assert order == [ONE, TWO] * 3


def test_bench_runs_lanes_at_the_same_time():
    engine = FakeEngine()
    meeting = threading.Barrier(2)

    def answer(batch):
        meeting.wait(10)  # breaks where the other lane never comes
        return np.zeros((len(batch), 2), np.float32)

    engine.answer = answer
    bench = make_bench(engine, Kitchen())

    bench.warm_up([Configuration(lanes=2, threads=1, batch_size=1)])
    bench.close()

    assert len(engine.batches) == 4


def test_bench_prepares_apart_where_told():
    engine, kitchen = FakeEngine(), Kitchen()
    bench = make_bench(engine, kitchen, prepare_threads=1)

    bench.warm_up([TWO])
    bench.close()

    assert engine.batches == [[0, 1], [0, 1]]
    assert not any(name.startswith("tune-") for name in kitchen.threads)


def test_bench_failure_of_one_lane_interrupts_the_others_and_waits_for_them():
    failing, both = threading.Lock(), threading.Barrier(2)
    interrupted, ended = threading.Event(), threading.Event()

    class HalfBroken(FakeEngine):
        def run(self, _batch, run=None):
            both.wait(10)
            if failing.acquire(blocking=False):
                raise RuntimeError("broken")
            run.on_interrupt(interrupted.set)
            interrupted.wait(10)
            ended.set()
            raise RuntimeError("interrupted")

    bench = make_bench(HalfBroken(), Kitchen())

    with pytest.raises(RuntimeError, match="broken"):
        bench.warm_up([Configuration(lanes=2, threads=1, batch_size=1)])
    bench.close()

    assert interrupted.is_set()
    assert ended.is_set()


def test_bench_passes_on_what_the_engine_raises():
    engine = FakeEngine()
    engine.poison.add(0.0)
    bench = make_bench(engine, Kitchen())

    with pytest.raises(RuntimeError, match="poisoned"):
        bench.warm_up([ONE])
    bench.close()
