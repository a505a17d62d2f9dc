from __future__ import annotations

from benchmarks.measures import Spread
from benchmarks.report import capacity, number, table


def measurement(scenario: str, per_s: float) -> dict[str, object]:
    labels = {"precision": "int8", "server": "one", "round": 1}
    return labels | {"scenario": scenario, "per_s": per_s}


def test_table_first_column_left_others_right():
    assert table(("server", "n"), [("one", "2")]) == (
        "| server | n |\n| --- | ---: |\n| one | 2 |\n"
    )


def test_number_several_rounds_show_their_spread():
    assert number(Spread(2.0, 1.0, 3.0, 3)) == "2.0 (1.0-3.0)"
    assert number(Spread(2.0, 2.0, 2.0, 1), 0) == "2"
    assert number(None) == "-"


def test_capacity_is_the_best_loaded_closed_loop():
    record = {
        "measurements": [
            measurement("closed-1", 99.0),
            measurement("closed-8", 50.0),
            measurement("closed-32", 60.0),
        ]
    }

    found = capacity(record, "int8", "one")

    assert found is not None
    assert found.median == 60.0
