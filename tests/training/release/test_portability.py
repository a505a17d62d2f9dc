"""The committed int8 models answer the same on other processors. Emulated, so a few pictures are enough."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from contract.versions import find_versions

pytestmark = [pytest.mark.portability, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[3]
MODELS = ROOT / "models"
ARM64 = Path(os.environ.get("SHARED", ROOT.parent / "shared"), "tools", "arm64")

# No VNNI: its int8 kernels add two products in 16 bits.
HASWELL = ["qemu-x86_64", "-cpu", "Haswell", sys.executable]

SAME = 5e-6  # float32 results rounded in another order
BETWEEN_PLATFORMS = 0.05  # of int8 answers to the same file: docs/compatibility.md

# Runs a graph on the reference pixels and on a request's, one picture at a time.
ANSWER = """
import json, sys
import numpy, onnxruntime
from contract.preprocessing import read_input, reference_input
from contract.versions import read_version
from pathlib import Path

version = read_version(Path("models"), sys.argv[1], int(sys.argv[2]))
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(version.graph, options, providers=["CPUExecutionProvider"])
answers = []
for example in version.manifest.golden[:3]:
    data = version.contents[example.file]
    for prepare in (reference_input, read_input):
        row = prepare(data, version.manifest)
        answers.append(session.run(["probabilities"], {"image": row[None]})[0][0].tolist())
print(json.dumps(answers))
"""

RUN = """
import json, sys
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
rows = numpy.full((1, 64), 1.0, dtype=numpy.float32)
print(json.dumps(session.run(None, {"x": rows})[0].tolist()))
"""

COMMITTED = [(name, version) for name, found in find_versions(MODELS).items() for version in found]


def _answers(python: list[str], code: str, *arguments: str) -> np.ndarray:
    done = subprocess.run(  # noqa: S603
        [*python, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return np.array(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture
def haswell():
    if sys.platform != "linux" or shutil.which(HASWELL[0]) is None:
        pytest.skip("needs qemu-x86_64 (Debian: qemu-user)")
    return HASWELL


@pytest.fixture(scope="module")
def arm64(tmp_path_factory):
    if not os.access(ARM64, os.X_OK):
        pytest.skip("needs an emulator of ARM64")
    folder = Path(os.environ.get("ARM64_FOLDER") or tmp_path_factory.mktemp("arm64"))
    return [str(ARM64), str(folder)]


@pytest.mark.parametrize(("name", "version"), COMMITTED)
def test_answers_do_not_need_vnni(name, version, haswell):
    here = _answers([sys.executable], ANSWER, name, str(version))
    there = _answers(haswell, ANSWER, name, str(version))

    assert len(here) == 6
    np.testing.assert_allclose(there, here, rtol=0, atol=SAME)


def test_the_emulated_processor_does_saturate(haswell, tmp_path):
    # Otherwise the test above could not fail.
    weights = np.full((64, 16), 127, dtype=np.int8)
    scale, zero = np.array(1.0, dtype=np.float32), np.array(0, dtype=np.uint8)
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["d"]),
            helper.make_node("DequantizeLinear", ["w", "one", "signed"], ["f"]),
            helper.make_node("MatMul", ["d", "f"], ["product"]),
            helper.make_node("QuantizeLinear", ["product", "large", "zero"], ["p"]),
            helper.make_node("DequantizeLinear", ["p", "large", "zero"], ["y"]),
        ],
        "saturates",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 16])],
        [
            numpy_helper.from_array(weights, "w"),
            numpy_helper.from_array(scale / 255, "step"),
            numpy_helper.from_array(scale, "one"),
            numpy_helper.from_array(scale * 64, "large"),
            numpy_helper.from_array(zero, "zero"),
            numpy_helper.from_array(np.array(0, dtype=np.int8), "signed"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = tmp_path / "saturates.onnx"
    path.write_bytes(model.SerializeToString())

    there = _answers(haswell, RUN, str(path))

    assert (there < 0.6 * 64 * 127).all()


@pytest.mark.parametrize(("name", "version"), COMMITTED)
def test_answers_on_arm64_are_within_the_tolerance(name, version, arm64):
    here = _answers([sys.executable], ANSWER, name, str(version))
    there = _answers(arm64, ANSWER, name, str(version))

    reference, request = slice(0, None, 2), slice(1, None, 2)
    np.testing.assert_allclose(there[reference], here[reference], rtol=0, atol=SAME)
    np.testing.assert_allclose(there[request], here[request], rtol=0, atol=BETWEEN_PLATFORMS)
