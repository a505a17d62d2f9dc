"""The example of a systemd unit names settings, a command and paths that exist."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from service.settings import Settings, from_environment

UNIT = Path(__file__).parents[2] / "deploy/systemd/convserve.service"


def values(key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", UNIT.read_text(encoding="utf-8"), re.MULTILINE)


def test_systemd_unit_sets_valid_settings():
    settings = from_environment(dict(one.split("=", 1) for one in values("Environment")))

    assert str(settings.uds) == "/run/convserve/http.sock"
    assert settings.forwarded_allow_ips == "unix"


def test_systemd_unit_waits_for_drain_and_grace():
    defaults = Settings()

    assert int(values("TimeoutStopSec")[0]) > defaults.drain_s + defaults.grace_s


def test_systemd_accepts_the_unit(tmp_path):
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd is not installed")
    text = UNIT.read_text(encoding="utf-8")
    copy = tmp_path / UNIT.name
    copy.write_text(text.replace("/opt/convserve/bin/convserve", "/bin/true"), encoding="utf-8")

    result = subprocess.run(  # noqa: S603
        [analyze, "verify", "--man=no", str(copy)], capture_output=True, text=True, check=False
    )

    said = [line for line in result.stderr.splitlines() if UNIT.name in line]
    assert (result.returncode, said) == (0, [])
