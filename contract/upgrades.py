"""Upgrades manifests of older schema versions, as plain JSON, to the one that `Manifest` describes.

Each step knows two schema versions and changes only what has another meaning in the newer one.
Whether the result is a valid manifest is for `Manifest` to decide.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from contract.errors import ManifestInvalid

SCHEMA_VERSION: Final = 2

Document = dict[str, Any]

_FIELDS_OF_1: Final = frozenset(
    {
        "schema_version",
        "name",
        "version",
        "created_at",
        "architecture",
        "graph",
        "preprocessing",
        "labels",
        "calibration",
        "metrics",
        "parity",
        "quantization",
        "half_precision",
        "golden",
        "files",
        "provenance",
    }
)


def schema_version_of(document: Document) -> int:
    """Returns the schema version of a manifest; one without a number has version 1.

    Raises:
        ManifestInvalid: it is not a number, or newer than SCHEMA_VERSION.
    """
    found = document.get("schema_version", 1)
    if type(found) is not int or found < 1:  # not bool, which is an int too
        raise ManifestInvalid("manifest.json: schema_version: must be a whole number, 1 or more")
    if found > SCHEMA_VERSION:
        raise ManifestInvalid(
            f"manifest.json: schema_version is {found}, this convserve reads 1 to "
            f"{SCHEMA_VERSION}; upgrade convserve"
        )
    return found


def upgrade(document: Document) -> Document:
    """Returns the manifest in SCHEMA_VERSION; the given one is not changed.

    Raises:
        ManifestInvalid: its schema version is unknown, or it has fields of a newer one.
    """
    for step in _STEPS[schema_version_of(document) - 1 :]:
        document = step(document)
    return document


def _from_1(document: Document) -> Document:
    # Version 2 adds optional fields, the layout of a feature map and kinds of rules for "unlike".
    newer = sorted(document.keys() - _FIELDS_OF_1)
    if newer:
        raise ManifestInvalid(
            f"manifest.json: {newer[0]}: unknown field; schema version 1 does not have it"
        )
    return {
        **document,
        "schema_version": 2,
        **_changed(document, "graph", _without_feature_map),
        **_changed(document, "calibration", _with_kind_of_rule),
    }


def _changed(document: Document, field: str, change: Callable[[Document], Document]) -> Document:
    value = document.get(field)
    return {field: change(value)} if isinstance(value, dict) else {}


def _without_feature_map(graph: Document) -> Document:
    # Version 1 did not say its layout, so it cannot be used. An output need not be listed.
    outputs = graph.get("outputs")
    if not isinstance(outputs, list):
        return graph
    kept = [o for o in outputs if not (isinstance(o, dict) and o.get("kind") == "feature_map")]
    return {**graph, "outputs": kept}


def _with_kind_of_rule(calibration: Document) -> Document:
    rule = calibration.get("unlike")
    if not isinstance(rule, dict) or "kind" in rule:
        return calibration
    score = rule.get("score", "energy")
    return {
        **calibration,
        "unlike": {"kind": score, **{k: v for k, v in rule.items() if k != "score"}},
    }


_STEPS: Final = (_from_1,)  # from version 1 to 2, ...
