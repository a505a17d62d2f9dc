from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from service.system.histogram import LoopHistogram

BOUNDS = (0.001, 0.25, 1.0, 128.0)
LABEL_NAMES = ("model", "stage")


def histogram(bounds: tuple[float, ...] = BOUNDS) -> tuple[LoopHistogram, CollectorRegistry]:
    registry = CollectorRegistry()
    made = LoopHistogram(
        "seconds", "What it means.", LABEL_NAMES, buckets=bounds, registry=registry
    )
    return made, registry


def buckets(registry: CollectorRegistry, **labels: str) -> list[float | None]:
    bounds = [*(str(bound) for bound in BOUNDS), "+Inf"]
    return [
        registry.get_sample_value("seconds_bucket", {**labels, "le": bound}) for bound in bounds
    ]


def exposed(registry: CollectorRegistry) -> str:
    """The text format without the times of creation, which the client library adds."""
    text = generate_latest(registry).decode()
    return "".join(line for line in text.splitlines(True) if not re.search("seconds_created", line))


def theirs(observations: list[tuple[tuple[str, str], float]]) -> str:
    registry = CollectorRegistry()
    made = Histogram("seconds", "What it means.", LABEL_NAMES, buckets=BOUNDS, registry=registry)
    for labels, value in observations:
        made.labels(*labels).observe(value)
    return exposed(registry)


def ours(observations: list[tuple[tuple[str, str], float]]) -> str:
    made, registry = histogram()
    for labels, value in observations:
        made.observe(labels, value)
    return exposed(registry)


def test_histogram_counts_and_adds_up_what_was_observed():
    made, registry = histogram()
    labels = {"model": "tiny", "stage": "infer"}

    for value in (0.5, 0.125, 200.0):
        made.observe(("tiny", "infer"), value)

    assert registry.get_sample_value("seconds_count", labels) == 3
    assert registry.get_sample_value("seconds_sum", labels) == 200.625


def test_histogram_buckets_hold_what_the_smaller_ones_do():
    made, registry = histogram()

    for value in (0.0, 0.125, 0.2, 0.5, 500.0):
        made.observe(("tiny", "infer"), value)

    assert buckets(registry, model="tiny", stage="infer") == [1, 3, 4, 4, 5]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.001, [1, 1, 1, 1, 1]),
        (0.25, [0, 1, 1, 1, 1]),
        (128, [0, 0, 0, 1, 1]),
        (128.0001, [0, 0, 0, 0, 1]),
    ],
    ids=["first", "middle", "last", "beyond"],
)
def test_histogram_value_equal_to_a_bound_is_below_it(value, expected):
    made, registry = histogram()

    made.observe(("tiny", "infer"), value)

    assert buckets(registry, model="tiny", stage="infer") == expected


def test_histogram_label_sets_are_counted_apart():
    made, registry = histogram()

    made.observe(("a", "infer"), 0.5)
    made.observe(("a", "rank"), 0.5)
    made.observe(("a", "rank"), 500)

    assert buckets(registry, model="a", stage="infer") == [0, 0, 1, 1, 1]
    assert buckets(registry, model="a", stage="rank") == [0, 0, 1, 1, 2]


def test_histogram_without_observations_has_no_series():
    assert ours([]) == theirs([])


@given(
    st.lists(
        st.tuples(
            st.tuples(st.sampled_from(["tiny", 'a"\\\nb']), st.sampled_from(["infer", "rank"])),
            st.one_of(st.sampled_from(BOUNDS), st.floats(0, 1e4)),
        ),
        max_size=20,
    )
)
def test_histogram_text_is_the_client_librarys(observations):
    assert ours(observations) == theirs(observations)
