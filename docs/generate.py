"""Writes docs/reference and the JSON schemas from the code.

Run it as `python -m docs.generate [--check]` from the root of the repository.
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
from convserve.loadtest.results import Result
from service.api.openapi import add_shared_parts, operation_id
from service.app import ROUTERS
from service.http.problems import PROBLEMS
from service.settings import ENVIRONMENT_PREFIX, Settings, flag_of, is_secret
from service.system.metrics import Metrics
from training.config.config import RunConfig

ROOT = Path(__file__).resolve().parent.parent
_HEADER = "<!-- Written by docs/generate.py from the code; do not edit. -->\n\n"


def settings_page() -> str:
    lines = [
        "# Settings",
        "",
        "Every setting is an environment variable and, unless it is a secret, a flag of `convserve serve`;",
        f"the flag wins. An unknown `{ENVIRONMENT_PREFIX}*` variable is an error, except those that Kubernetes",
        "sets for services called convserve (`CONVSERVE_PORT=tcp://...`). `convserve serve --print-settings`",
        "prints the settings in effect, without the secrets.",
        "",
        "| variable | flag | default | allowed values | description |",
        "|---|---|---|---|---|",
    ]
    for name, field in Settings.model_fields.items():
        default = "unset" if field.default in (None, "") else f"`{field.default}`"
        if isinstance(field.default, bool):
            default = f"`{str(field.default).lower()}`"
        variable = f"{ENVIRONMENT_PREFIX}{name.upper()}"
        flag = "-" if is_secret(name) else f"`{flag_of(name)}`"
        lines.append(
            f"| `{variable}` | {flag} | {default} | {_allowed(field)} | {field.description} |"
        )
    return "\n".join(lines) + "\n"


def _allowed(field: typing.Any) -> str:
    if typing.get_origin(field.annotation) is typing.Literal:
        return ", ".join(typing.get_args(field.annotation))
    if field.annotation is bool:
        return "true, false"

    found = {
        name: f"{getattr(item, name):,}"
        for item in field.metadata
        for name in ("ge", "gt", "le")
        if getattr(item, name, None) is not None
    }
    if "ge" in found and "le" in found:
        return f"{found['ge']} to {found['le']}"
    words = {"ge": "at least", "gt": "more than", "le": "at most"}
    return ", ".join(f"{words[name]} {bound}" for name, bound in found.items()) or "any"


def config_page() -> str:
    schema = RunConfig.model_json_schema()
    lines = [
        "# Training configs",
        "",
        "Keys of the TOML files for `convserve-train fit --config`. An unknown key is an error.",
        "[How to train](../how-to/train.md) explains how to choose them.",
        "",
        "| key | type | default | description |",
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
        lines += ["| key | type | default | description |", "|---|---|---|---|"]
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
    # anyOf: an optional field. allOf: a described reference, in older versions of pydantic.
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
    lines = [
        "# Errors",
        "",
        "Every response outside 2xx is `application/problem+json` (RFC 9457) with `type`, `title`,",
        "`status`, `code`, `detail` and `request_id`. `code` is stable, so programs should check it.",
        "A 503 has a `Retry-After` header. In a response to several pictures, `results[i].error` has the",
        "same `status`, `code`, `title` and `detail`. `closed` means that the server closes the",
        "connection after the response. `admin` marks the codes that only the admin port answers with.",
        "",
        "| status | code | title | connection | port |",
        "|---|---|---|---|---|",
    ]
    for code, problem in PROBLEMS.items():
        connection = "closed" if problem.close else "kept"
        port = "admin" if problem.admin else "any"
        lines.append(f"| {problem.status} | `{code}` | {problem.title} | {connection} | {port} |")
    return "\n".join(lines) + "\n"


def metrics_page() -> str:
    lines = [
        "# Metrics",
        "",
        "`GET /metrics` returns them in the Prometheus text format. Every series of a counter exists from",
        "the start, at 0. Traffic cannot create series. A version brings its series when it is adopted and",
        "takes them along when it retires.",
        "",
        "`process_*` describe the service's own process. With `--workers`, `convserve_workers_*` add its",
        "children. [How to operate](../how-to/operate.md) explains the alerts and the dashboard.",
        "",
    ]
    lines += ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for metric in Metrics().describe():
        labels = ", ".join(f"`{label}`" for label in metric.labels) or "-"
        lines.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |")
    return "\n".join(lines) + "\n"


def openapi() -> str:
    # Without `create_app`, which would load models.
    app = FastAPI(
        title="convserve",
        summary="A picture in, labelled probabilities out.",
        generate_unique_id_function=operation_id,
    )
    for router in ROUTERS:
        app.include_router(router)

    document = app.openapi()
    add_shared_parts(document)
    document["info"]["version"] = (
        "v1"  # the package's version would change the page with each release
    )
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def manifest_schema() -> str:
    return json.dumps(Manifest.model_json_schema(), indent=1) + "\n"


def loadtest_schema() -> str:
    return json.dumps(Result.model_json_schema(), indent=1) + "\n"


PAGES: dict[str, Callable[[], str]] = {
    "docs/reference/settings.md": lambda: _HEADER + settings_page(),
    "docs/reference/config.md": lambda: _HEADER + config_page(),
    "docs/reference/errors.md": lambda: _HEADER + errors_page(),
    "docs/reference/metrics.md": lambda: _HEADER + metrics_page(),
    "docs/reference/openapi.json": openapi,
    "contract/manifest.schema.json": manifest_schema,
    "docs/reference/loadtest-result.schema.json": loadtest_schema,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail if a page is out of date"
    )
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
