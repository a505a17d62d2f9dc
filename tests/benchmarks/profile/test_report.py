from __future__ import annotations

from typing import Any

from benchmarks.profile.proc import LOOP, ROLES
from benchmarks.profile.report import by_stage, by_thread, calls, fronts, markdown, switches


def row(server: str, clients: int, per_s: float) -> dict[str, Any]:
    use = {"cpu_us": 100.0, "voluntary": 1.5, "involuntary": 0.5}
    return {
        "server": server,
        "clients": clients,
        "per_s": per_s,
        "latency_p50_ms": 1.0,
        "latency_p99_ms": 2.0,
        "cpu_ms_per_request": 5.0,
        "roles": dict.fromkeys(ROLES, use),
    }


def record(**found: Any) -> dict[str, Any]:
    empty: dict[str, Any] = {"threads": [], "calls": [], "stages": {}, "front": [], "bare": []}
    machine = {
        "cpu": "a CPU",
        "cores": 2,
        "instructions": ["avx2"],
        "memory_mb": 1,
        "kernel": "6",
        "python": "3",
        "load_before": 0.0,
    }
    return {
        "started_at": "2026-01-01T00:00Z",
        "commit": "abc",
        "baseline": None,
        "machine": machine,
        "options": {"rounds": 1, "seconds": 1, "n_photos": 1, "precisions": ["int8"]},
        "precisions": {"int8": empty | found},
        "notes": [],
    }


def test_by_thread_rounds_joined_and_sorted_by_clients():
    rows = [row("a", 8, 10.0), row("a", 1, 5.0), row("a", 8, 30.0)]

    lines = by_thread(rows, [{"per_s": 40.0, "cpu_ms_per_image": 4.0}]).splitlines()

    assert lines[2].startswith("| a | 1 | 5.0 |")
    assert lines[3].startswith("| a | 8 | 20.0 (10.0-30.0) |")
    assert lines[4].startswith("| bare loop | - | 40.0 |")


def test_switches_voluntary_then_involuntary():
    assert "| a | 8 | 1.50 / 0.50 |" in switches([row("a", 8, 10.0)])


def test_calls_most_frequent_first():
    rows = [{"server": "a", "clients": 8, "calls": {"read": 1.0, "futex": 2.5}}]

    assert calls(rows).splitlines()[2] == "| a | 8 | 3.50 | futex 2.50, read 1.00 |"


def test_by_stage_rest_and_whole_follow_the_stages():
    us = {"parse": 1.0, "run": 5.0, "log line, on the writer's thread": 2.0}
    us |= {"run, a picture of 8": 4.0}
    us |= {f"{kind}, {thread}": 9.0 for kind in ("rest", "whole") for thread in (LOOP, "lane")}
    stages = {"us": us, LOOP: ["parse"], "lane": ["run"]}

    names = [line.split(" | ")[0] for line in by_stage([stages]).splitlines()[2:]]

    assert names[:3] == ["| parse", "| rest, event loop", "| whole, event loop"]
    assert names[4:7] == ["| run", "| rest, lane", "| whole, lane"]


def test_fronts_time_of_a_lane_is_divided_by_that_of_the_front():
    text = fronts([row("a", 32, 1000.0)], [{"cpu_ms_per_image": 20.0}])

    assert text.splitlines()[2] == "| a | 32 | 1000 | 500 | 2.0 | 100 | 5000 | 4.0 |"


def test_markdown_leaves_out_what_was_not_measured():
    text = markdown(record(threads=[row("a", 1, 1.0)]))

    assert "by thread" in text
    assert "by stage" not in text
    assert "Not measured" not in text
