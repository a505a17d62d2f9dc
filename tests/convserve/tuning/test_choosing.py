from __future__ import annotations

import pytest

from convserve.tuning.choosing import changed_settings, choose, compare
from convserve.tuning.measuring import Configuration, Sample, Samples

DEFAULT = Configuration(lanes=2, threads=1, batch_size=1)


def rates(*images_per_s: float) -> list[Sample]:
    """Samples of lanes that had the cores to themselves."""
    return [Sample(rate, 1.0, 2e3 / rate, rate) for rate in images_per_s]


def curve(**by_size: list[Sample]) -> Samples:
    """The default's lanes; `b4` is batches of 4, `one` is one lane and `wide` one of two threads."""
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
            curve(b1=BASE, wide=rates(*[125] * 5), b4=rates(*[124] * 5)),
            {"max_batch_size": 4},
        ),
        (
            curve(b1=BASE, wide=rates(*[150] * 5), b4=rates(*[110] * 5)),
            {"max_batch_size": 4},
        ),
        (curve(b1=BASE, one=rates(*[110] * 5)), {"lanes": 1}),
        (curve(b1=BASE, b4=rates(*[80] * 5)), {}),
        (curve(b1=BASE, b4=rates(*[130] * 4, 99)), {}),
        (curve(b1=BASE[:4], b4=rates(*[150] * 4)), {}),
        (curve(b1=BASE, b4=rates(*[150] * 4)), {}),
        (curve(b1=rates(*[100] * 6), b4=rates(*[150] * 5), b8=[]), {"max_batch_size": 4}),
        (curve(b1=BASE), {}),
        (curve(b1=[], b4=[]), {}),
    ],
    ids=[
        "flat",
        "too_little_to_matter",
        "clear_gain",
        "noise",
        "noise_of_whole_rounds_cancels",
        "smallest_batch_that_is_nearly_best",
        "default_lanes_before_others",
        "threads_that_no_setting_gives",
        "lanes",
        "batches_cost",
        "worse_in_one_round",
        "too_few_rounds",
        "too_few_rounds_of_the_rival",
        "interrupted",
        "nothing_to_choose_from",
        "nothing_measured",
    ],
)
def test_choose_prefers_the_default_unless_something_is_clearly_better(samples, settings):
    choice = choose(samples, DEFAULT)

    assert changed_settings(choice.configuration, DEFAULT) == settings


def test_choose_names_the_best_rival_of_the_default():
    choice = choose(curve(b1=BASE, b2=rates(*[101] * 5), b4=rates(*[90] * 5)), DEFAULT)

    assert (choice.configuration, choice.rival) == (DEFAULT, Configuration(2, 1, 2))
    assert choice.gain is not None
    assert choice.gain.median == pytest.approx(0.01)


def test_choose_keeps_a_default_that_is_large():
    large = Configuration(2, 1, 8)

    choice = choose(curve(b1=rates(*[90] * 5), b4=rates(*[101] * 5), b8=BASE), large)

    assert choice.configuration == large


def test_compare_pairs_rounds():
    gain = compare(rates(110, 240, 60), rates(100, 200, 50, 70))

    assert gain.median == pytest.approx(0.2)
    assert gain.least == pytest.approx(0.1)
    assert gain.spread == pytest.approx(0.05)
    assert gain.rounds == 3


@pytest.mark.parametrize(
    ("share", "on_cores", "batch_size"),
    [(0.9, True, 4), (0.5, True, 1), (0.5, False, 4)],
    ids=["quiet", "busy", "device"],
)
def test_choose_concludes_nothing_where_other_work_took_the_cores(share, on_cores, batch_size):
    samples = {
        Configuration(2, 1, size): [Sample(rate, 1.0, share * 2e3 / rate, rate)] * 5
        for size, rate in ((1, 100.0), (4, 150.0))
    }

    choice = choose(samples, DEFAULT, on_cores=on_cores)

    assert choice.configuration.batch_size == batch_size
    assert choice.rival == Configuration(2, 1, 4)
    assert choice.is_busy == (on_cores and share < 0.75)
