import asyncio

from benchmarks.micro.observability import measure


def test_observability_measures_every_part():
    rows = asyncio.run(measure(rounds=1, n_requests=2))

    assert [name for name, *_ in rows] == [
        "a request",
        "stage histograms, counters",
        "Server-Timing",
        "all of these",
    ]
    assert rows[0][1] > 0
