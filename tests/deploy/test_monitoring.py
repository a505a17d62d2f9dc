"""The monitoring files agree with the code, with each other and with the documentation."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import combinations
from typing import Any

import pytest
import yaml
from fastapi import APIRouter
from fastapi.routing import APIRoute

from service.app import HOT_ROUTERS, ROUTERS
from service.http.edge import QUIET_ROUTES
from service.running import LABEL_VALUES
from service.system.metrics import Metrics
from tests.deploy import monitoring
from tests.deploy.monitoring import GRAFANA, PROMETHEUS, ROOT

METRICS = {one.name: one for one in Metrics().describe()}
SUFFIXES = ("_bucket", "_sum", "_count")
RULES = monitoring.rules()
RECORDED = {rule["record"]: rule for rule in RULES if "record" in rule}
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
QUERIES = {
    **{name: rule["expr"] for name, rule in (RECORDED | ALERTS).items()},
    **{f"{title} {number}": query for number, (title, query) in enumerate(monitoring.queries())},
    **monitoring.variables(),
}
OF_PROMETHEUS = {"up", "ALERTS"}
TARGET_LABELS = {"job", "instance", "service"}
KNOWN_VALUES = {
    "code": set(LABEL_VALUES.error_codes),
    "outcome": {"ok", *LABEL_VALUES.picture_codes},
    "reason": set(LABEL_VALUES.restart_reasons) | {reason for _, reason in LABEL_VALUES.refusals},
}
MONITORING_SERVICES = ("prometheus", "grafana")


def of_code(name: str) -> str:
    """The metric of a histogram's series."""
    for suffix in SUFFIXES:
        bare = name.removesuffix(suffix)
        if bare != name and METRICS.get(bare) and METRICS[bare].kind == "histogram":
            return bare
    return name


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES.keys())
def test_monitoring_metrics_of_queries_exist(query):
    used = monitoring.metrics_of(query)

    assert used or query.startswith("vector(")
    assert {of_code(one) for one in used} <= METRICS.keys() | RECORDED.keys() | OF_PROMETHEUS


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES.keys())
def test_monitoring_labels_and_values_of_queries_exist(query):
    for metric, label, value in monitoring.selectors(query):
        described = METRICS.get(of_code(metric))
        if described is not None and label != "le":
            assert label in TARGET_LABELS | set(described.labels), metric
        if label in KNOWN_VALUES and "$" not in value:
            assert set(value.split("|")) <= KNOWN_VALUES[label]


def test_monitoring_route_patterns_match_the_routes_that_are_meant():
    patterns = {
        value
        for query in QUERIES.values()
        for _, label, value in monitoring.selectors(query)
        if label == "route"
    }
    health_checks = "/livez|/readyz|/metrics"
    assert set(health_checks.split("|")) == QUIET_ROUTES
    (pattern,) = patterns - {health_checks}

    matched = {path for path in paths_of(ROUTERS) if re.fullmatch(pattern, path)}

    assert matched == paths_of(HOT_ROUTERS), "other paths have to be added to all patterns"


def paths_of(routers: Iterable[APIRouter]) -> set[str]:
    routes = [route for router in routers for route in router.routes]
    return {route.path for route in routes if isinstance(route, APIRoute)}


def test_monitoring_latency_objective_is_a_bucket():
    (bound,) = {
        value
        for query in QUERIES.values()
        for _, label, value in monitoring.selectors(query)
        if label == "le"
    }
    metrics = Metrics()
    metrics.add_routes({"/": []})

    assert (
        f'convserve_request_seconds_bucket{{le="{bound}",route="/"}}' in metrics.render().decode()
    )


# Alerts


def anchors() -> set[str]:
    """The anchors that GitHub gives to the headings of the page about operation."""
    text = (ROOT / "docs" / "how-to" / "operate.md").read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).replace(" ", "-") for one in headings}


@pytest.mark.parametrize("name", ALERTS)
def test_monitoring_alert_says_what_to_do(name):
    notes = ALERTS[name]["annotations"]
    page, _, anchor = notes["runbook_url"].partition("#")

    assert ALERTS[name]["labels"]["severity"] in {"page", "ticket"}
    assert notes["summary"]
    assert notes["description"].endswith(".") or notes["description"].endswith("{{ end }}.")
    assert page == "docs/how-to/operate.md"
    assert anchor == name.lower()
    assert anchor in anchors()


@pytest.mark.parametrize("name", ALERTS)
def test_monitoring_alert_is_tested_firing_and_not_firing(name):
    document = yaml.safe_load((PROMETHEUS / "tests" / "alerts.yml").read_text(encoding="utf-8"))
    cases = [
        bool(case.get("exp_alerts"))
        for test in document["tests"]
        for case in test["alert_rule_test"]
        if case["alertname"] == name
    ]

    assert set(cases) == {True, False}


# The dashboard


def test_monitoring_dashboard_is_provisioned_with_its_data_source():
    (source,) = monitoring.load(GRAFANA / "provisioning/datasources/prometheus.yml")["datasources"]
    document = monitoring.dashboard()

    used = {panel["datasource"]["uid"] for panel in monitoring.panels()}
    used |= {one["datasource"]["uid"] for one in document["templating"]["list"]}
    assert used == {source["uid"]}
    assert document["uid"] == "convserve"
    assert list(monitoring.variables()) == ["instance", "model"]


@pytest.mark.parametrize("panel", monitoring.panels(), ids=lambda panel: panel["title"])
def test_monitoring_panel_has_unit_and_description(panel: dict[str, Any]):
    assert panel["description"].endswith(".")
    assert panel["type"] == "table" or panel["fieldConfig"]["defaults"]["unit"]
    assert all(target["datasource"] == panel["datasource"] for target in panel["targets"])


def test_monitoring_panels_do_not_overlap():
    def cells(panel: dict[str, Any]) -> set[tuple[int, int]]:
        at = panel["gridPos"]
        columns, rows = range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"])
        return {(x, y) for x in columns for y in rows}

    every = monitoring.dashboard()["panels"]

    assert len({panel["id"] for panel in every}) == len(every)
    assert all(x < 24 for panel in every for x, _ in cells(panel))
    assert not any(cells(one) & cells(other) for one, other in combinations(every, 2))


# The compose profile


@pytest.mark.parametrize("name", MONITORING_SERVICES)
def test_monitoring_service_is_pinned_confined_and_local(name):
    service = monitoring.load(ROOT / "docker-compose.yml")["services"][name]

    assert service["profiles"] == ["monitoring"]
    assert re.fullmatch(r"[a-z]+/[a-z]+:v?\d+\.\d+\.\d+", service["image"])
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
    for volume in service["volumes"]:
        source, target, *mode = volume.split(":")
        assert mode == ["ro"] if source.startswith(".") else not mode
        assert not source.startswith(".") or (ROOT / source).is_dir(), target


def test_monitoring_scrapes_services_of_the_compose_file():
    services = monitoring.load(ROOT / "docker-compose.yml")["services"]
    (job,) = monitoring.load(PROMETHEUS / "prometheus.yml")["scrape_configs"]
    (discovery,) = job["dns_sd_configs"]

    assert job["job_name"] == "convserve"
    assert {"convserve", "gpu"} <= set(discovery["names"])
    assert set(discovery["names"]) & set(services) >= {"convserve", "gpu"}


def test_monitoring_grafana_has_no_users_and_sends_nothing():
    environment = monitoring.load(ROOT / "docker-compose.yml")["services"]["grafana"]["environment"]

    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"
    assert environment["GF_ANALYTICS_REPORTING_ENABLED"] == "false"
    assert environment["GF_PLUGINS_PREINSTALL_DISABLED"] == "true"
