from __future__ import annotations

from itertools import count

import pytest

from convserve.versions import speed
from convserve.versions.speed import MAX_ROUNDS, MIN_ROUNDS, compare_speed
from service.models.repository import EngineConfig, load_version
from tests import tinymodel


class Turns:
    """A version whose runs take a number of seconds of a clock that does not move by itself."""

    def __init__(self, models_dir, number, seconds, log):
        loaded = load_version(models_dir, "tiny", number, EngineConfig("cpu", max_batch_size=1))
        self.manifest, self.engine, self.seconds, self.log = loaded.manifest, self, seconds, log

    def run(self, _batch, _run):
        self.log.append(self)


@pytest.fixture
def turns(tmp_path):
    """Versions A and B, which take 1 s and 2 s, their runs, and the clock."""
    log: list[Turns] = []
    versions = []
    for number in (1, 2):
        tinymodel.write_version(tmp_path, version=number)
        versions.append(Turns(tmp_path, number, float(number), log))
    return versions, log, lambda: sum(one.seconds for one in log)


def test_versions_take_turns_and_the_spread_is_of_each(turns):
    (a, b), log, clock = turns

    found = compare_speed([tinymodel.picture("red")], a, b, 0.0, clock, lambda: clock() / 2)

    assert log == [a, b] * (1 + MIN_ROUNDS)  # the first round warms up
    assert (found.n, found.n_pictures) == (MIN_ROUNDS, 1)
    assert (found.a.milliseconds.median, found.b.milliseconds.median) == (1000.0, 2000.0)
    assert (found.a.cpu_seconds.median, found.b.cpu_seconds.median) == (0.5, 1.0)
    assert (found.ratio.low, found.ratio.median, found.ratio.high) == (2.0, 2.0, 2.0)


def test_measuring_ends_after_the_given_time(turns):
    (a, b), _, clock = turns

    found = compare_speed([tinymodel.picture("red")], a, b, 30.0, clock, clock)

    assert found.n == 10  # rounds of 3 s


def test_measuring_ends_after_the_largest_number_of_rounds(turns, monkeypatch):
    (a, b), _, _ = turns
    monkeypatch.setattr(speed, "MAX_ROUNDS", MIN_ROUNDS + 1)
    ticks = count(1)

    pictures = [tinymodel.picture("red"), tinymodel.picture("blue")]
    found = compare_speed(pictures, a, b, 1e9, lambda: next(ticks), lambda: next(ticks))

    assert (found.n, found.n_pictures) == (MIN_ROUNDS + 1, 2)
    assert found.n < MAX_ROUNDS
