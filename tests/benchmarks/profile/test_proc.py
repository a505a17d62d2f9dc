from __future__ import annotations

import os
import threading

import pytest

from benchmarks.profile.proc import (
    LANES,
    LOG,
    LOOP,
    OTHERS,
    Thread,
    ThreadUse,
    by_role,
    parse_calls,
    parse_cpu_s,
    parse_switches,
    read_threads,
)

TICKS = os.sysconf("SC_CLK_TCK")
ROOT = 10
STRACE = """\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 75.00    0.000300           3       100        20 futex
 25.00    0.000100           2        50           epoll_pwait
------ ----------- ----------- --------- --------- ----------------
100.00    0.000400           2       150        20 total
"""


def test_parse_cpu_user_and_system_time_of_an_odd_name():
    fields = ["S", "7", *["0"] * 9, str(2 * TICKS), str(TICKS), "3", "4"]

    assert parse_cpu_s(f"42 (a) b) {' '.join(fields)}") == 3.0


def test_parse_switches_both_kinds():
    status = "Name:\tlane\nvoluntary_ctxt_switches:\t12\nnonvoluntary_ctxt_switches:\t3\n"

    assert parse_switches(status) == (12, 3)


def test_parse_calls_with_and_without_errors_and_no_total():
    assert parse_calls(STRACE) == {"futex": 100, "epoll_pwait": 50}


def test_parse_calls_nothing_called():
    assert parse_calls("") == {}


@pytest.mark.parametrize(
    ("thread", "role"),
    [
        pytest.param(Thread(ROOT, ROOT, "python"), LOOP, id="main-thread"),
        pytest.param(Thread(ROOT, 11, "lane"), LANES, id="lane"),
        pytest.param(Thread(ROOT, 12, "Thread-1 (_moni"), LOG, id="log-writer"),
        pytest.param(Thread(ROOT, 13, "signals"), OTHERS, id="signals"),
        pytest.param(Thread(20, 20, "python"), LANES, id="child-process"),
    ],
)
def test_role_by_process_and_name(thread: Thread, role: str):
    assert thread.role(ROOT) == role


def test_by_role_threads_summed_and_new_ones_counted_whole():
    lanes = [Thread(ROOT, tid, "lane") for tid in (11, 12)]
    before = {lanes[0]: ThreadUse(1.0, 10, 1)}
    after = {lanes[0]: ThreadUse(3.0, 15, 2), lanes[1]: ThreadUse(0.5, 1, 0)}

    used = by_role(before, after, ROOT)

    assert used[LANES] == ThreadUse(2.5, 6, 1)
    assert used[LOOP] == ThreadUse()


def test_read_threads_finds_this_one():
    found = read_threads([os.getpid()])

    assert threading.get_native_id() in {thread.tid for thread in found}
