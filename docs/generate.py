"""Writes docs/reference and the manifest's JSON schema from the code; `--check` fails if they differ.

Run as `python docs/generate.py [--check]` from the root of the repository.
"""

from __future__ import annotations

import argparse
import json
import sys
import typing
from collections.abc import Callable
from pathlib import Path

from fastapi import FastAPI

from contract.manifest import Manifest
from service.app import ROUTERS
from service.http.problems import PROBLEMS
from service.settings import ENVIRONMENT_PREFIX, Settings
from service.system.metrics import Metrics
from training.config.config import RunConfig

ROOT = Path(__file__).resolve().parent.parent
_HEADER = "<!-- Written by docs/generate.py from the code; do not edit. -->\n\n"


def settings_page() -> str:
    """Returns the table of all settings with default, bounds and description."""
    lines = [
        "# Settings",
        "",
        "Each is an environment variable and a flag of `convserve serve`; the flag wins. An unknown",
        f"`{ENVIRONMENT_PREFIX}*` variable is an error. `convserve serve --print-settings` shows what",
        "is in force.",
        "",
        "| variable | flag | default | bounds | what it does |",
        "|---|---|---|---|---|",
    ]
    for name, field in Settings.model_fields.items():
        default = "unset" if field.default is None else f"`{field.default}`"
        variable, flag = f"{ENVIRONMENT_PREFIX}{name.upper()}", "--" + name.replace("_", "-")
        lines.append(
            f"| `{variable}` | `{flag}` | {default} | {_bounds(field)} | {field.description} |"
        )
    return "\n".join(lines) + "\n"


def _bounds(field: typing.Any) -> str:
    if typing.get_origin(field.annotation) is typing.Literal:
        return ", ".join(typing.get_args(field.annotation))
    signs = {"ge": "≥ ", "gt": "> ", "le": "≤ ", "lt": "< "}
    bounds = [
        f"{sign}{getattr(item, name):g}"
        if isinstance(getattr(item, name), float)
        else f"{sign}{getattr(item, name)}"
        for item in field.metadata
        for name, sign in signs.items()
        if getattr(item, name, None) is not None
    ]
    return ", ".join(bounds) or "-"


def config_page() -> str:
    """Returns the tables of all keys of a training config."""
    schema = RunConfig.model_json_schema()
    lines = [
        "# Training configs",
        "",
        "Keys of the TOML files that `convserve-train fit --config` takes; an unknown key is an error.",
        "[How to train](../how-to/train.md) says what they are for.",
        "",
        "| key | type | default | what it does |",
        "|---|---|---|---|",
        _config_row("seed", schema["properties"]["seed"]),
    ]
    for section, field in schema["properties"].items():
        reference = next((one for one in _choices(field) if "$ref" in one), None)
        if reference is None:
            continue
        table = schema["$defs"][reference["$ref"].rpartition("/")[2]]
        about = " ".join(filter(None, (table["description"], field.get("description", ""))))
        lines += ["", f"## `[{section}]`", "", about, ""]
        lines += ["| key | type | default | what it does |", "|---|---|---|---|"]
        required = table.get("required", [])
        for name, key in table["properties"].items():
            lines.append(_config_row(name, key, required=name in required))
    return "\n".join(lines) + "\n"


def _config_row(name: str, key: dict[str, typing.Any], *, required: bool = False) -> str:
    shown = "required" if required else json.dumps(key.get("default"))
    words = {"null": "unset", '""': "empty", "required": "required"}
    default = words.get(shown, f"`{shown}`")
    kinds = [_kind(one) for one in _choices(key) if one.get("type") != "null"]
    about = key.get("description", "")
    return f"| `{name}` | {' or '.join(kinds)} | {default} | {about} |"


def _choices(key: dict[str, typing.Any]) -> list[dict[str, typing.Any]]:
    choices: list[dict[str, typing.Any]] = key.get("anyOf") or key.get("allOf") or [key]
    return choices


def _kind(key: dict[str, typing.Any]) -> str:
    if "enum" in key:
        return ", ".join(f"`{value}`" for value in key["enum"])
    if key.get("type") == "array":
        return "two numbers" if key.get("maxItems") == 2 else "list"
    signs = {
        "minimum": "≥ ",
        "exclusiveMinimum": "> ",
        "maximum": "≤ ",
        "exclusiveMaximum": "< ",
    }
    bounds = [f"{sign}{key[name]:g}" for name, sign in signs.items() if name in key]
    names = {"integer": "whole number", "boolean": "true or false", "object": "table"}
    kind = names.get(key.get("type", ""), key.get("type", "any"))
    return f"{kind} {', '.join(bounds)}".strip()


def errors_page() -> str:
    """Returns the table of all error codes."""
    lines = [
        "# Errors",
        "",
        "Every answer that is not 2xx is `application/problem+json` (RFC 9457) with `type`, `title`,",
        "`status`, `code`, `detail` and `request_id`. `code` is stable: programs should look at it.",
        "503 carries `Retry-After`. In an answer to several pictures, `results[i].error` has the same",
        "`status`, `code`, `title` and `detail`.",
        "",
        "| status | code | title | connection |",
        "|---|---|---|---|",
    ]
    for code, problem in PROBLEMS.items():
        connection = "closed" if problem.close else "kept"
        lines.append(f"| {problem.status} | `{code}` | {problem.title} | {connection} |")
    return "\n".join(lines) + "\n"


def metrics_page() -> str:
    """Returns the table of all Prometheus metrics."""
    lines = ["# Metrics", "", "`GET /metrics`, Prometheus text format.", ""]
    lines += ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for metric in Metrics().describe():
        labels = ", ".join(f"`{label}`" for label in metric.labels) or "-"
        lines.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |")
    return "\n".join(lines) + "\n"


def openapi() -> str:
    """Returns the description of the API."""
    app = FastAPI(title="convserve", summary="A picture in, labelled probabilities out.")
    for router in ROUTERS:
        app.include_router(router)
    document = app.openapi()
    document["info"]["version"] = "v1"
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def manifest_schema() -> str:
    """Returns the JSON schema of manifest.json."""
    return json.dumps(Manifest.model_json_schema(), indent=1) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "docs/reference/settings.md": lambda: _HEADER + settings_page(),
    "docs/reference/config.md": lambda: _HEADER + config_page(),
    "docs/reference/errors.md": lambda: _HEADER + errors_page(),
    "docs/reference/metrics.md": lambda: _HEADER + metrics_page(),
    "docs/reference/openapi.json": openapi,
    "contract/manifest.schema.json": manifest_schema,
}


def main() -> int:
    """Writes the pages, or compares them with `--check`; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, fail if out of date")
    check = parser.parse_args().check
    stale = []
    for path, page in PAGES.items():
        file, text = ROOT / path, page()
        if file.exists() and file.read_text(encoding="utf-8") == text:
            continue
        stale.append(path)
        if not check:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    for path in stale:
        sys.stdout.write(f"{'out of date' if check else 'written'}: {path}\n")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
