"""The README's commands, run against a real server."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from contract.images import resampling
from docs import figures
from tests.e2e.server import ROOT, Server, running_server

# Three digits with the x86-64 wheels, elsewhere the tolerance for int8 of docs/compatibility.md.
X86_WHEELS = platform.machine() in ("x86_64", "AMD64") and resampling.simd is not None
TOLERANCE = 0.0005 if X86_WHEELS else 0.05

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS: list[tuple[str, str]] = re.findall(
    r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL
)
DOCUMENTED_URL = "http://127.0.0.1:8000"

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Serves the committed model."""
    with running_server() as running:
        yield running


def block(language: str, containing: str) -> str:
    """Returns the README's first block of a language that contains a text."""
    return next(text for kind, text in BLOCKS if kind == language and containing in text)


def run(*command: str) -> str:
    """Runs a command in the root of the repository and returns what it printed."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)  # noqa: S603
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_readme_curl_command_gets_the_answer_shown(server: Server) -> None:
    shown = json.loads(block("json", "predictions"))
    command = block("sh", "--data-binary @examples/cat.jpg").replace(DOCUMENTED_URL, server.url)

    answer = json.loads(run("sh", "-c", command.replace("curl", "curl --silent --fail")))

    labels = [prediction["label"] for prediction in answer["predictions"]]
    assert labels == [prediction["label"] for prediction in shown["predictions"]]
    for got, expected in zip(answer["predictions"], shown["predictions"], strict=True):
        assert got["probability"] == pytest.approx(expected["probability"], abs=TOLERANCE)


def test_readme_python_client_prints_labelled_probabilities(server: Server) -> None:
    client = block("python", "urllib").replace(DOCUMENTED_URL, server.url)

    printed = run(sys.executable, "-c", client)

    assert re.match(r"0\.\d{3}  .*cat\n", printed)


def test_readme_several_pictures_show_one_error(server: Server) -> None:
    command = block("sh", "-F a=").replace(DOCUMENTED_URL, server.url)

    answer = json.loads(run("sh", "-c", command.replace("curl", "curl --silent")))

    good, bad = answer["results"]
    assert "cat" in good["predictions"][0]["label"]
    assert bad["error"]["code"] == "unsupported_media_type"


def test_readme_names_only_commands_and_files_that_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"`?make ([a-z-]+)", README))
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]

    missing = [target for target in targets if not re.search(rf"^{target}:", makefile, re.M)]
    missing += [link for link in links if not (ROOT / link).exists()]

    assert missing == []


def test_readme_example_predictions_match_the_bundled_model(server: Server) -> None:
    svg = (ROOT / "docs" / "images" / "guesses.svg").read_text(encoding="utf-8")
    shown = re.findall(r">([A-Za-z ]+)</text>.*?>(\d+)%</text>", svg, re.DOTALL)

    answer = json.loads(
        run("curl", "-s", "--data-binary", "@examples/cat.jpg", f"{server.url}/v1/classify")
    )

    assert [label for label, _ in shown] == [one["label"] for one in answer["predictions"]]
    for (_, percent), one in zip(shown, answer["predictions"], strict=True):
        assert int(percent) == pytest.approx(100 * one["probability"], abs=3)


def test_readme_benchmark_figure_matches_the_records() -> None:
    svg = (ROOT / "docs" / "images" / "benchmark.svg").read_text(encoding="utf-8")

    assert svg == figures.benchmark_svg()


def test_architecture_names_only_files_that_exist() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    files = set(re.findall(r"[\w/]+\.py", page))
    tops = [ROOT, ROOT / "service", ROOT / "training"]
    folders = [folder for top in tops[1:] for folder in top.rglob("*") if folder.is_dir()]

    missing = [name for name in files if not any((top / name).exists() for top in tops + folders)]

    assert len(files) > 30
    assert missing == []
