"""Manifests and version folders for the contract tests."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from contract.versions import seal

GRAPH = b"the graph"
PICTURE = b"the picture"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def fields(**changes: Any) -> dict[str, Any]:
    """Returns a valid manifest of three classes as plain data, with top-level fields replaced."""
    manifest = {
        "schema_version": 2,
        "name": "colours",
        "version": 1,
        "created_at": "2025-01-02T03:04:05Z",
        "architecture": "tiny",
        "graph": {
            "file": "model.onnx",
            "sha256": sha(GRAPH),
            "opset": 18,
            "input": {
                "name": "image",
                "dtype": "uint8",
                "layout": "NHWC",
                "shape": [None, 32, 32, 3],
            },
            "outputs": [{"name": "probabilities", "kind": "probabilities"}],
        },
        "preprocessing": {
            "resize_size_px": 36,
            "crop_size_px": 32,
            "interpolation": "bicubic",
            "mean": [0.5, 0.4, 0.3],
            "std": [0.5, 0.25, 0.2],
            "in_graph": True,
        },
        "labels": [{"index": i, "name": name} for i, name in enumerate(("red", "green", "blue"))],
        "golden": [
            {
                "file": "golden/red.png",
                "sha256": sha(PICTURE),
                "top5": [
                    {"index": 0, "label": "red", "probability": 0.7},
                    {"index": 2, "label": "blue", "probability": 0.2},
                ],
                "tolerance": 0.05,
            }
        ],
        "files": {"model.onnx": sha(GRAPH), "golden/red.png": sha(PICTURE)},
        "provenance": {"license": "Apache-2.0", "weights_source": "made for tests"},
    }
    return {**manifest, **changes}


def changed(path: str, value: Any) -> dict[str, Any]:
    """Returns a valid manifest with one nested field replaced, named as in "graph.input.shape"."""
    manifest: dict[str, Any] = json.loads(json.dumps(fields()))
    *parents, last = path.split(".")
    target: Any = manifest
    for part in parents:
        target = target[int(part)] if isinstance(target, list) else target[part]
    target[int(last) if isinstance(target, list) else last] = value
    return manifest


def write_version(models: Path, manifest: dict[str, Any] | None = None) -> Path:
    """Writes a version with the files its manifest lists. Returns its folder."""
    manifest = manifest or fields()
    folder = models / "colours" / "1"
    (folder / "golden").mkdir(parents=True)
    write_manifest(folder, json.dumps(manifest))
    (folder / "model.onnx").write_bytes(GRAPH)
    (folder / "golden" / "red.png").write_bytes(PICTURE)
    return folder


def write_manifest(folder: Path, text: str) -> None:
    """Writes the text as the manifest, with its digest file."""
    (folder / "manifest.json").write_text(text)
    (folder / "manifest.sha256").write_bytes(seal(text.encode()))
