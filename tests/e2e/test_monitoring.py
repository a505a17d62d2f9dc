"""A real Prometheus scrapes a real service, with the rules of deploy/monitoring.

It needs the programs `prometheus` and `promtool` (Debian's package `prometheus`), and two minutes: rates
need several scrapes.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import tinymodel
from tests.deploy import monitoring
from tests.deploy.monitoring import PROMETHEUS
from tests.e2e.server import Server, running_server

pytestmark = [
    pytest.mark.monitoring,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not shutil.which("promtool"), reason="no Prometheus"),
]

RED = tinymodel.picture("red")
PATIENCE_S = 180.0
# What Grafana puts in for "All", and for a scrape interval of 15 seconds.
VARIABLES = {"$instance": ".+", "$model": ".+", "$__rate_interval": "60s"}


class RunningPrometheus:
    """A Prometheus with the committed configuration, except for the addresses of its targets."""

    def __init__(self, folder: Path, target: str) -> None:
        config = monitoring.load(PROMETHEUS / "prometheus.yml")
        (job,) = config["scrape_configs"]
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": [target]}]
        config["rule_files"] = [str(PROMETHEUS / pattern) for pattern in config["rule_files"]]
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self._url = f"http://{address}/api/v1"
        self._log = (folder / "log").open("wb")
        self._process = subprocess.Popen(  # noqa: S603
            [  # noqa: S607
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdout=self._log,
            stderr=self._log,
        )

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._log.close()

    def get(self, path: str, **parameters: str) -> Any:
        query = urllib.parse.urlencode(
            {name.replace("match_", "match[]"): one for name, one in parameters.items()}
        )
        with urllib.request.urlopen(f"{self._url}/{path}?{query}") as response:  # noqa: S310
            return json.load(response)["data"]

    def query(self, expression: str) -> list[float]:
        """The values of an instant query that are numbers."""
        found = self.get("query", query=expression)["result"]
        values = [float(one["value"][1]) for one in found]
        return [value for value in values if not math.isnan(value)]

    def wait_for(self, expressions: list[str]) -> dict[str, list[float]]:
        """Waits until every query has returned a number, and returns what they returned."""
        found: dict[str, list[float]] = {}
        ends_s = time.monotonic() + PATIENCE_S
        while missing := [one for one in expressions if one not in found]:
            assert time.monotonic() < ends_s, f"no series: {missing}"
            time.sleep(1)
            found |= {one: values for one in missing if (values := self.query(one))}
        return found


@contextmanager
def traffic(server: Server) -> Iterator[None]:
    """Sends good, broken, malformed and refused pictures until the context ends."""
    ended = threading.Event()

    def send() -> None:
        with server.client() as client:
            while not ended.wait(0.02):
                client.post("/v1/classify", content=RED)
                client.post("/v1/models/tiny/classify", files=[("a", RED), ("b", RED[:50])])
                client.post("/v1/classify", content=b"{", headers={"content-type": "text/html"})
                client.post("/v1/classify", content=RED, headers={"x-request-timeout-ms": "1e-9"})

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    models_dir = tmp_path_factory.mktemp("models")
    tinymodel.write_version(models_dir)
    with running_server(models_dir=models_dir) as running, traffic(running):
        yield running


@pytest.fixture(scope="module")
def prometheus(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningPrometheus]:
    running = RunningPrometheus(tmp_path_factory.mktemp("prometheus"), f"127.0.0.1:{server.port}")
    try:
        ends_s = time.monotonic() + 30
        while True:
            try:
                running.query("vector(1)")
                break
            except OSError:
                assert time.monotonic() < ends_s
                time.sleep(0.1)
        yield running
    finally:
        running.stop()


def filled_in(query: str) -> str:
    for variable, value in VARIABLES.items():
        query = query.replace(variable, value)
    return query


def promtool(*arguments: str, text: bytes | None = None) -> str:
    done = subprocess.run(  # noqa: S603
        ["promtool", *arguments],  # noqa: S607
        cwd=PROMETHEUS,
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout.decode()
    return done.stdout.decode()


@pytest.mark.parametrize("folder", ["rules", "tests"])
def test_promtool_accepts_the_rules_and_their_tests(folder):
    files = sorted(str(file) for file in (PROMETHEUS / folder).glob("*.yml"))

    assert "SUCCESS" in promtool("check" if folder == "rules" else "test", "rules", *files)


def test_promtool_accepts_the_configuration():
    assert "valid prometheus config" in promtool("check", "config", "prometheus.yml")


def test_promtool_has_nothing_to_say_about_the_metrics(server):
    with server.client() as client:
        page = client.get("/metrics").content

    assert promtool("check", "metrics", text=page) == ""


def test_dashboard_every_query_returns_a_series_after_traffic(prometheus):
    queries = [filled_in(query) for _, query in monitoring.queries()]

    found = prometheus.wait_for(queries)

    assert all(found.values())


@pytest.mark.parametrize(("name", "query"), monitoring.variables().items())
def test_dashboard_variables_have_values(prometheus, name, query):
    ((selector, label),) = re.findall(r"label_values\((.*\}), (\w+)\)", filled_in(query))
    prometheus.wait_for([selector])

    values = prometheus.get(f"label/{label}/values", match_=selector)

    assert (name, len(values)) == (label, 1)


def test_rules_are_evaluated_without_errors(prometheus):
    recorded = [rule["record"] for rule in monitoring.rules() if "record" in rule]
    prometheus.wait_for(recorded)

    rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]

    assert {rule["name"] for rule in rules} == {
        rule.get("record") or rule["alert"] for rule in monitoring.rules()
    }
    assert {(rule["health"], rule.get("lastError", "")) for rule in rules} == {("ok", "")}
    assert prometheus.get("alertmanagers")["activeAlertmanagers"] == []


def test_alerts_of_a_service_that_refuses_a_quarter_of_its_requests(prometheus):
    prometheus.wait_for(['ALERTS{alertname="ConvserveRefusals"}'])

    alerts = {one["labels"]["alertname"] for one in prometheus.get("alerts")["alerts"]}

    assert alerts == {"ConvserveRefusals"}
