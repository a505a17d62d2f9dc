from __future__ import annotations

import os

import pytest

from service.system.cpus import usable_cpus


@pytest.fixture
def _eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))


@pytest.mark.usefixtures("_eight_cores")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("200000 100000\n", 2),
        ("250000 100000\n", 2),
        ("50000 100000\n", 1),
        ("max 100000\n", 8),
        ("1600000 100000\n", 8),
        ("", 8),
        ("garbage", 8),
        ("200000 \n", 8),
    ],
)
def test_cpus_cgroup_v2_quota_is_respected(tmp_path, text, expected):
    (tmp_path / "cpu.max").write_text(text)

    assert usable_cpus(tmp_path) == expected


@pytest.mark.usefixtures("_eight_cores")
@pytest.mark.parametrize(
    ("quota", "period", "expected"),
    [("300000\n", "100000\n", 3), ("-1\n", "100000\n", 8), ("", "", 8)],
    ids=["three", "unlimited", "empty"],
)
def test_cpus_cgroup_v1_quota_is_respected(tmp_path, quota, period, expected):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text(period)

    assert usable_cpus(tmp_path) == expected


@pytest.mark.usefixtures("_eight_cores")
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_cpus_quota_period_of_zero_ignored(tmp_path, version):
    (tmp_path / "cpu").mkdir()
    if version == "v2":
        (tmp_path / "cpu.max").write_text("100000 0")
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("100000")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("0")

    assert usable_cpus(tmp_path) == 8


@pytest.mark.usefixtures("_eight_cores")
def test_cpus_without_cgroup_are_those_of_the_affinity(tmp_path):
    assert usable_cpus(tmp_path / "missing") == 8


@pytest.mark.parametrize(("count", "expected"), [(6, 6), (None, 1)])
def test_cpus_without_affinity_are_those_of_the_machine(monkeypatch, tmp_path, count, expected):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: count)

    assert usable_cpus(tmp_path) == expected
