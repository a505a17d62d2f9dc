from __future__ import annotations

import os
import subprocess
import sys

import pytest

from benchmarks.processes import Stat, cpu_s, descendants, on_core, parse_stat

TICKS = os.sysconf("SC_CLK_TCK")


def test_parse_stat_skips_an_odd_command():
    fields = ["S", "7", *["0"] * 9, "100", "20", "3", "4", "20", "0"]

    stat = parse_stat(f"42 (a) b) c) {' '.join(fields)}")

    assert stat == Stat(42, 7, 127)


def test_descendants_all_levels_found_and_others_left_out():
    stats = [Stat(2, 1, 0), Stat(3, 2, 0), Stat(4, 3, 0), Stat(5, 1, 0), Stat(6, 5, 0)]

    found = descendants(stats, 1, frozenset({5}))

    assert sorted(stat.pid for stat in found) == [2, 3, 4]


def test_cpu_ended_child_that_was_waited_for_still_counts():
    before = [Stat(2, 1, 5 * TICKS), Stat(3, 2, 2 * TICKS)]
    after = [Stat(2, 1, 8 * TICKS)]  # the child's 3 seconds are now its parent's

    assert cpu_s(after) - cpu_s(before) == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
def test_on_core_keeps_what_it_starts_on_one_core_and_restores_the_others():
    before = os.sched_getaffinity(0)
    core = max(before)
    code = "import os; print(sorted(os.sched_getaffinity(0)))"

    with on_core(core):
        child = subprocess.run(  # noqa: S603
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )

    assert child.stdout.strip() == f"[{core}]"
    assert os.sched_getaffinity(0) == before
