"""What the compose file says, without a Docker engine."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
HAPROXY = (ROOT / "deploy" / "proxy" / "haproxy.cfg").read_text(encoding="utf-8")
MAX_REPLICAS = 16
_DOCUMENT = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = _DOCUMENT["services"]
NETWORKS: dict[str, dict[str, Any]] = _DOCUMENT["networks"]
PINNED = re.compile(r"[a-z./-]+:v?\d+\.\d+\.\d+(-[a-z0-9.]+)?")


def filled_in(text: str) -> str:
    """The text with the default of each variable."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


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
    assert all(replica[key] == service[key] for key in service.keys() - {"ports", "environment"})
    environment = dict(replica["environment"])
    assert environment.pop("CONVSERVE_FORWARDED_ALLOW_IPS")
    assert environment == service["environment"]


def test_compose_replica_believes_the_proxy_and_nobody_else() -> None:
    (network,) = NETWORKS["proxied"]["ipam"]["config"]
    others = ipaddress.ip_network(filled_in(network["ip_range"]))
    proxy = filled_in(SERVICES["proxy"]["networks"]["proxied"]["ipv4_address"])

    believed = filled_in(SERVICES["replica"]["environment"]["CONVSERVE_FORWARDED_ALLOW_IPS"])

    assert believed == proxy
    assert ipaddress.ip_address(proxy) in ipaddress.ip_network(filled_in(network["subnet"]))
    assert ipaddress.ip_address(proxy) not in others
    assert others.num_addresses > MAX_REPLICAS


def test_compose_proxy_finds_replicas_in_the_network_where_it_is_believed() -> None:
    (name,) = SERVICES["replica"]["networks"]["proxied"]["aliases"]

    assert f"server-template replica {MAX_REPLICAS} {name}:8000" in HAPROXY
