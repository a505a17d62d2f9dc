"""A complete version whose network compares the means of the red, green and blue channels.

The ONNX file is about a kilobyte, so tests of the service start in milliseconds, and the right
answers are obvious.
"""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from contract.manifest import Manifest, parse_manifest
from contract.predictions import softmax
from contract.versions import manifest_files, sha256

SIDE_PX = 8
LOAD_ALL = Path(__file__).with_name("load_all.toml")  # a repository.toml
LABELS = ("red", "green", "blue")
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
SHARPNESS = 4.0  # logits are the channel means, in 0..1, times this

Kind = Literal["uint8", "float32"]


def picture(
    colour: str | tuple[int, int, int], side_px: int = 16, file_format: str = "PNG"
) -> bytes:
    """Returns an image file of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (side_px, side_px), COLOURS.get(colour, colour)).save(buffer, file_format)  # type: ignore[arg-type]
    return buffer.getvalue()


def expected(colour: tuple[int, int, int]) -> list[float]:
    """Returns the probabilities of (red, green, blue) for a picture of one colour."""
    return [float(p) for p in softmax(np.array(colour, np.float64) / 255.0 * SHARPNESS)]


def graph(kind: Kind = "uint8", batch: int | None = None, lopsided: bool = False) -> bytes:
    """Returns the ONNX file.

    Args:
        kind: "uint8": NHWC pixels in, probabilities out. "float32": NCHW values in, logits out,
            as imported graphs have them.
        batch: 1 for a graph that takes one picture per run, None for any number.
        lopsided: weights red by its distance from the left edge and green by its distance from
            the top, so that rotating a picture changes its answer. A picture of a single colour
            keeps its answer. "uint8" only.
    """
    rows: int | str = batch or "N"
    nodes = [
        helper.make_node("Cast", ["image"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["values", "axes"], ["means"], keepdims=0),
        helper.make_node("Mul", ["means", "scale"], ["logits"]),
    ]
    if kind == "uint8":
        nodes.append(helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1))
        shape: list[int | str] = [rows, SIDE_PX, SIDE_PX, 3]
        element, axes, scale, output = TensorProto.UINT8, [1, 2], SHARPNESS / 255, "probabilities"
    else:
        shape = [rows, 3, SIDE_PX, SIDE_PX]
        element, axes, scale, output = TensorProto.FLOAT, [2, 3], SHARPNESS, "logits"

    initializers = [
        helper.make_tensor("axes", TensorProto.INT64, [2], axes),
        helper.make_tensor("scale", TensorProto.FLOAT, [], [scale]),
    ]
    if lopsided:
        down, right = np.indices((SIDE_PX, SIDE_PX), np.float32) * 2 / (SIDE_PX - 1)
        weights = np.stack((right, down, np.ones_like(down)), axis=-1)  # HWC, each channel's mean 1
        initializers.append(numpy_helper.from_array(weights, "weights"))
        nodes[0].output[0] = "unweighted"
        nodes.insert(1, helper.make_node("Mul", ["unweighted", "weights"], ["values"]))

    built = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", element, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [rows, 3])],
        initializers,
    )
    model = helper.make_model(built, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def constant_graph(probabilities: list[float]) -> bytes:
    """Returns a graph of kind "uint8" that answers every picture alike."""
    model = onnx.load_from_string(graph())
    output = model.graph.output[0]
    model.graph.node[-1].output[0] = "answer_before"
    output.type.tensor_type.shape.dim[1].dim_value = len(probabilities)
    model.graph.node.extend(
        [
            helper.make_node("ReduceSum", ["answer_before", "last"], ["ones"], keepdims=1),
            helper.make_node("Mul", ["ones", "answer"], [output.name]),
        ]
    )
    model.graph.initializer.append(helper.make_tensor("last", TensorProto.INT64, [1], [1]))
    row = [1, len(probabilities)]
    model.graph.initializer.append(
        helper.make_tensor("answer", TensorProto.FLOAT, row, probabilities)
    )
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def endless_graph(*, only_on_white: bool = False) -> bytes:
    """Returns the tiny model with an endless loop before its output.

    Args:
        only_on_white: loops only if every picture of the batch is white; other batches get the
            tiny model's answer.
    """
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_on"], ["go_on_still"]),
            helper.make_node("Identity", ["answer"], ["same_answer"]),
        ],
        "body",
        [
            value("number", TensorProto.INT64, []),
            value("go_on", TensorProto.BOOL, []),
            value("answer", TensorProto.FLOAT, ["N", 3]),
        ],
        [
            value("go_on_still", TensorProto.BOOL, []),
            value("same_answer", TensorProto.FLOAT, ["N", 3]),
        ],
    )

    model = onnx.load_from_string(graph())
    output = model.graph.output[0].name
    model.graph.node[-1].output[0] = "answer_before"
    model.graph.node.extend(
        [
            helper.make_node("ReduceMin", ["values"], ["darkest"], keepdims=0),
            helper.make_node("GreaterOrEqual", ["darkest", "threshold"], ["endless"]),
            helper.make_node("Loop", ["", "endless", "answer_before"], [output], body=body),
        ]
    )

    threshold = 255.0 if only_on_white else 0.0
    model.graph.initializer.append(
        helper.make_tensor("threshold", TensorProto.FLOAT, [], [threshold])
    )
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def greedy_graph(when: Literal["load", "run"]) -> bytes:
    """Returns the tiny model with constants of 9 GB, of which it adds one value, a zero.

    onnxruntime computes constants of up to 1 GiB when it loads a graph, and larger ones in each run.
    """
    sizes = [2_250_000_000] if when == "run" else [250_000_000 + i for i in range(9)]
    node = helper.make_node
    model = onnx.load_from_string(graph())
    output = model.graph.output[0].name
    model.graph.node[-1].output[0] = "answer_before"
    model.graph.node.extend(
        [
            node("ReduceMin", ["values"], ["darkest"], keepdims=0),
            node("Mul", ["darkest", "no"], ["zero"]),
            node("Cast", ["zero"], ["position"], to=TensorProto.INT64),
            *(node("ConstantOfShape", [f"size_{n}"], [f"zeros_{n}"]) for n in sizes),
            *(node("Gather", [f"zeros_{n}", "position"], [f"zero_{n}"]) for n in sizes),
            node("Sum", ["answer_before", *(f"zero_{n}" for n in sizes)], [output]),
        ]
    )
    model.graph.initializer.append(helper.make_tensor("no", TensorProto.FLOAT, [], [0.0]))
    model.graph.initializer.extend(
        helper.make_tensor(f"size_{n}", TensorProto.INT64, [1], [n]) for n in sizes
    )
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def write_version(
    models_dir: Path,
    name: str = "tiny",
    version: int = 1,
    kind: Kind = "uint8",
    batch: int | None = None,
    lopsided: bool = False,
    *,
    graph_file: bytes | None = None,
    **changes: Any,
) -> Manifest:
    """Writes a version into a model repository.

    `kind`, `batch` and `lopsided` choose the graph, as in `graph`.

    Args:
        graph_file: an ONNX file to write instead of that graph.
        changes: top-level manifest members to replace.

    Returns:
        The manifest that was written.
    """
    folder = models_dir / name / str(version)
    (folder / "golden").mkdir(parents=True)
    files = {
        "model.onnx": graph_file or graph(kind, batch, lopsided),
        "MODEL_CARD.md": b"# tiny\n",
    }

    golden = []
    for colour in LABELS:
        path = f"golden/{colour}.png"
        files[path] = picture(colour)
        ranked = sorted(enumerate(expected(COLOURS[colour])), key=lambda pair: -pair[1])
        golden.append(
            {
                "file": path,
                "sha256": sha256(files[path]),
                "tolerance": 0.001,
                "top5": [{"index": i, "label": LABELS[i], "probability": p} for i, p in ranked],
            }
        )

    digests = {path: sha256(data) for path, data in files.items()}
    uint8 = kind == "uint8"
    sides = [SIDE_PX, SIDE_PX, 3] if uint8 else [3, SIDE_PX, SIDE_PX]
    document = {
        "schema_version": 2,
        "name": name,
        "version": version,
        "created_at": datetime(2026, 1, 1, tzinfo=UTC),
        "architecture": "three_means",
        "graph": {
            "file": "model.onnx",
            "sha256": digests["model.onnx"],
            "opset": 18,
            "input": {
                "name": "image",
                "dtype": kind,
                "layout": "NHWC" if uint8 else "NCHW",
                "shape": [batch, *sides],
            },
            "outputs": [
                {"name": "probabilities", "kind": "probabilities"}
                if uint8
                else {"name": "logits", "kind": "logits"}
            ],
        },
        "preprocessing": {
            "resize_size_px": SIDE_PX,
            "crop_size_px": SIDE_PX,
            "interpolation": "bilinear",
            "mean": [0.0, 0.0, 0.0],
            "std": [1.0, 1.0, 1.0],
            "in_graph": uint8,
        },
        "labels": [{"index": i, "name": label} for i, label in enumerate(LABELS)],
        "golden": golden,
        "files": digests,
        "provenance": {"license": "Apache-2.0", "weights_source": "none"},
        **changes,
    }

    manifest = Manifest.model_validate(document)
    for path, data in files.items():
        (folder / path).write_bytes(data)
    for path, data in manifest_files(manifest).items():
        (folder / path).write_bytes(data)
    return parse_manifest((folder / "manifest.json").read_bytes())
