"""The image and the compose file, built and run for real. Needs a Docker engine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
CAT = ROOT / "examples" / "cat.jpg"
MAX_IMAGE_BYTES = 700_000_000
VARIABLES = {  # of the compose file
    "CONVSERVE_BUILD_NETWORK": "host",
    "CONVSERVE_TAG": "test",
    "CONVSERVE_PUBLISHED_PORT": "18467",
    "CONVSERVE_PUBLISHED_PROXY_PORT": "18468",
    "CONVSERVE_PROXIED_NETWORK": "10.83.28",
}
SERVICES = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
PROFILES = sorted({name for service in SERVICES.values() for name in service.get("profiles", ())})


def run(*command: str, timeout_s: int = 900) -> str:
    """Runs a command in the root of the repository and returns what it printed."""
    done = subprocess.run(  # noqa: S603
        command,
        cwd=ROOT,
        env={**os.environ, **VARIABLES},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def docker_is_running() -> bool:
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "info"], capture_output=True).returncode == 0  # noqa: S607


def compose_program() -> list[str]:
    return ["docker-compose"] if shutil.which("docker-compose") else ["docker", "compose"]


pytestmark = [
    pytest.mark.docker,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not docker_is_running(), reason="no Docker engine"),
]


@pytest.fixture(scope="module")
def image() -> str:
    """Builds the service image once and returns its name."""
    run("docker", "build", "--network", "host", "--target", "service", "-t", "convserve:test", ".")
    return "convserve:test"


@pytest.fixture(scope="module")
def compose(image: str) -> Iterator[list[str]]:  # noqa: ARG001 - it must be there
    """Starts the compose file's service from the built image; yields the compose command."""
    command = [*compose_program(), "-p", f"convserve-{uuid.uuid4().hex[:8]}"]
    try:
        run(*command, "up", "-d", "--no-build", "convserve")
        yield command
    finally:
        run(*command, "down", "--volumes", "--timeout", "20")


@pytest.fixture
def proxy(compose: list[str]) -> Iterator[list[str]]:
    """Starts two replicas behind the proxy; yields the compose command with that profile."""
    name = SERVICES["proxy"]["image"]
    if subprocess.run(["docker", "image", "inspect", name], capture_output=True).returncode:  # noqa: S603, S607
        pulled = subprocess.run(["docker", "pull", name], capture_output=True)  # noqa: S603, S607
        if pulled.returncode:
            pytest.skip(f"{name} cannot be pulled")

    command = [*compose, "--profile", "proxy"]
    try:
        run(*command, "up", "-d", "--no-build", "--scale", "replica=2", "proxy")
        yield command
    finally:
        run(*command, "rm", "--stop", "--force", "proxy", "replica")


def container(compose: list[str]) -> dict[str, object]:
    """Returns what `docker inspect` reports about the running container."""
    container_id = run(*compose, "ps", "-q", "convserve").strip()
    inspected: list[dict[str, object]] = json.loads(run("docker", "inspect", container_id))
    return inspected[0]


def wait_healthy(compose: list[str], service: str = "convserve") -> None:
    """Waits until Docker's own health check has passed."""
    container_id = run(*compose, "ps", "-q", service).strip()
    template = "{{.State.Health.Status}}"
    script = (
        f"until [ $(docker inspect -f '{template}' {container_id}) = healthy ]; do sleep 0.2; done"
    )
    run("timeout", "60", "sh", "-c", script)


def post_cat(url: str) -> int:
    request = urllib.request.Request(url, CAT.read_bytes(), {"Content-Type": "image/jpeg"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
            status: int = response.status
    except urllib.error.HTTPError as error:
        return error.code
    return status


def test_image_contains_no_training_packages_and_no_build_tools(image: str) -> None:
    forbidden = "torch torchvision timm onnx onnxscript pip setuptools"
    probe = (
        "import importlib.util as u, json, os;"
        f"print(json.dumps([m for m in '{forbidden}'.split() if u.find_spec(m)]"
        " + [c for c in ('gcc', 'cc', 'pip', 'pip3') if __import__('shutil').which(c)]))"
    )

    found = run("docker", "run", "--rm", "--entrypoint", "python", image, "-c", probe)

    assert json.loads(found) == []


def test_image_size_stays_within_budget(image: str) -> None:
    size = int(run("docker", "image", "inspect", "-f", "{{.Size}}", image))

    assert size < MAX_IMAGE_BYTES


def test_image_runs_without_any_network_or_writable_path(image: str) -> None:
    answer = run(
        *("docker", "run", "--rm", "--network", "none", "--read-only", "--cap-drop", "ALL"),
        *("-v", f"{ROOT}/examples:/examples:ro", image, "classify", "/examples/cat.jpg"),
    )

    assert "cat" in answer


def test_compose_becomes_healthy_and_answers(compose: list[str]) -> None:
    wait_healthy(compose)
    request = urllib.request.Request(
        "http://127.0.0.1:18467/v1/classify", CAT.read_bytes(), {"Content-Type": "image/jpeg"}
    )

    with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
        answer = json.load(response)

    assert any("cat" in prediction["label"] for prediction in answer["predictions"])


@pytest.mark.parametrize("profile", PROFILES)
def test_compose_profile_is_valid(profile: str) -> None:
    run(*compose_program(), "--profile", profile, "config", "--quiet")


def test_compose_loadtest_sends_every_kind_of_request_without_a_failure(compose: list[str]) -> None:
    run("docker", "build", "--network", "host", "-t", "convserve-loadtest:test", "loadtest")
    options = ("--headless", "--users", "4", "--spawn-rate", "4", "--run-time", "4s", "--json")

    # Not in the foreground: docker-compose 1.29 sometimes loses the output of a short run.
    name = run(*compose, "--profile", "loadtest", "run", "-d", "-T", "locust", *options).strip()
    try:
        code = run("docker", "wait", name).strip()
        report = run("docker", "logs", name)
    finally:
        run("docker", "rm", "--force", name)

    assert code == "0"
    statistics = {entry["name"]: entry for entry in json.loads(report)}
    assert set(statistics) == {"raw body", "multipart", "multipart, 4 pictures"}
    assert all(entry["num_requests"] > 0 for entry in statistics.values())
    assert all(entry["num_failures"] == 0 for entry in statistics.values())


def test_compose_proxy_answers_after_a_replica_was_killed(proxy: list[str]) -> None:
    wait_healthy(proxy, "proxy")
    lost = run(*proxy, "ps", "-q", "replica").split()[0]

    run("docker", "kill", "--signal", "KILL", lost)
    statuses = [post_cat("http://127.0.0.1:18468/v1/classify") for _ in range(20)]

    assert statuses == [200] * 20


def test_compose_replicas_log_the_client_of_the_proxy(proxy: list[str]) -> None:
    wait_healthy(proxy, "proxy")
    request = urllib.request.Request(
        "http://127.0.0.1:18468/v1/models",
        headers={"X-Forwarded-For": "203.0.113.7", "X-Request-Id": "whose"},
    )
    template = "{{range .NetworkSettings.Networks}}{{.Gateway}} {{end}}"
    container_id = run(*proxy, "ps", "-q", "proxy").strip()
    this_machine = run("docker", "inspect", "-f", template, container_id).split()

    urllib.request.urlopen(request, timeout=30).close()  # noqa: S310
    logs = [run("docker", "logs", one) for one in run(*proxy, "ps", "-q", "replica").split()]

    (line,) = [line for log in logs for line in log.splitlines() if '"whose"' in line]
    assert json.loads(line)["client"] in this_machine


def test_compose_container_is_confined(compose: list[str]) -> None:
    state = container(compose)
    host = state["HostConfig"]
    assert isinstance(host, dict)

    identity = run(
        *compose, "exec", "-T", "convserve", "python", "-c", "import os; print(os.getuid())"
    )

    write = (
        "import pathlib, errno\n"
        "for path in ('/x', '/srv/x', '/opt/convserve/x', '/models/x'):\n"
        "    try: pathlib.Path(path).write_text('x')\n"
        "    except OSError as error: print(errno.errorcode[error.errno])"
    )

    refusals = run(*compose, "exec", "-T", "convserve", "python", "-c", write).split()

    assert identity.strip() == "10001"
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert any("no-new-privileges" in option for option in host["SecurityOpt"])
    assert host["PidsLimit"] == 256
    assert refusals == ["EROFS"] * 4


def test_compose_stop_ends_with_status_zero(compose: list[str]) -> None:
    wait_healthy(compose)
    container_id = run(*compose, "ps", "-q", "convserve").strip()

    run(*compose, "stop", "--timeout", "45", "convserve")
    code = run("docker", "inspect", "-f", "{{.State.ExitCode}}", container_id).strip()
    run(*compose, "start", "convserve")
    wait_healthy(compose)

    assert code == "0"
