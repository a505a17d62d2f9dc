"""What the compose file says, without a Docker engine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(TEXT)["services"]
PINNED = re.compile(r"[a-z./-]+:v?\d+\.\d+\.\d+(-[a-z0-9.]+)?")


@pytest.fixture(params=SERVICES)
def service(request: pytest.FixtureRequest) -> dict[str, Any]:
    return SERVICES[request.param]


def test_env_example_has_every_variable_of_the_compose_file_with_its_default() -> None:
    used = set(re.findall(r"\$\{(\w+):-([^}]*)\}", TEXT))
    example = (ROOT / ".env.example").read_text(encoding="utf-8")

    documented = set(re.findall(r"^#(\w+)=(.*)$", example, re.MULTILINE))

    assert documented == used
    assert TEXT.count("${") == len(re.findall(r"\$\{\w+:-", TEXT)), "a variable without a default"


def test_compose_service_rotates_its_log(service: dict[str, Any]) -> None:
    logging = service["logging"]

    assert logging["driver"] == "json-file"
    assert logging["options"] == {"max-size": "10m", "max-file": "3"}


def test_compose_service_has_an_image_of_ours_or_of_one_release(service: dict[str, Any]) -> None:
    image = service["image"]

    assert "build" in service or PINNED.fullmatch(image)


def test_compose_service_publishes_on_loopback_only(service: dict[str, Any]) -> None:
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


def test_compose_service_is_confined(service: dict[str, Any]) -> None:
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "mem_limit" in service


def test_compose_replica_is_the_service_without_a_port() -> None:
    service, replica = SERVICES["convserve"], SERVICES["replica"]

    assert replica["ports"] == []
    assert all(replica[key] == service[key] for key in service if key != "ports")
