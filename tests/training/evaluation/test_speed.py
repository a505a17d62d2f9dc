from dataclasses import replace
from itertools import count

import pytest

from tests.training.helpers import tinynet
from training.errors import PicturesMissing
from training.evaluation import speed


def ticking_clock(step_s: float):
    """Returns a clock that advances by `step_s` each time it is read."""
    ticks = count()
    return lambda: step_s * next(ticks)


def test_measure_speed_times_every_step(tiny_graph, colour_pictures):
    draft = tinynet.draft(tiny_graph)

    steps = speed.measure_speed(tiny_graph, draft, colour_pictures, ticking_clock(0.004))

    assert [(step.step, step.n) for step in steps] == [
        ("decode", 9),
        ("preprocess", 9),
        ("graph, batch of 1", 9),
        ("graph, batch of 8", 2),
    ]
    assert [step.median_ms for step in steps] == pytest.approx([4, 4, 4, 0.5])
    assert steps[0].quartiles_ms == pytest.approx((4, 4))


def test_measure_speed_of_a_fixed_batch_size_runs_no_other(tiny_graph, colour_pictures):
    draft = tinynet.draft(tiny_graph)
    shape = (1, *draft.graph.input.shape[1:])
    fixed_input = draft.graph.input.model_copy(update={"shape": shape})
    fixed = replace(draft, graph=draft.graph.model_copy(update={"input": fixed_input}))

    steps = speed.measure_speed(tiny_graph, fixed, colour_pictures, ticking_clock(0.001))

    assert [step.step for step in steps] == ["decode", "preprocess", "graph, batch of 1"]


def test_measure_speed_limits_the_number_of_pictures(tiny_graph, colour_pictures):
    many = colour_pictures * 8

    steps = speed.measure_speed(tiny_graph, tinynet.draft(tiny_graph), many, ticking_clock(0.001))

    assert steps[0].n == speed.N_PICTURES < len(many)


def test_step_time_of_uneven_times_gives_the_quartiles():
    measured = speed._step_time("x", [1.0, 2.0, 3.0, 4.0, 100.0])

    assert (measured.median_ms, measured.quartiles_ms) == (3.0, (2.0, 4.0))


def test_measure_speed_without_pictures_is_refused(tiny_graph):
    with pytest.raises(PicturesMissing):
        speed.measure_speed(tiny_graph, tinynet.draft(tiny_graph), [])


def test_describe_machine_names_the_cores(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 3)

    text = speed.describe_machine()

    assert text.endswith(", 3 cores")
    assert not text.startswith(",")
