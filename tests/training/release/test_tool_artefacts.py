"""Files that other tools wrote, served as the tools themselves answer.

`tests/training/artefacts` has the files, the scripts that made them, and the tools' own answers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from contract.preprocessing import to_row
from contract.versions import read_version
from tests.training.artefacts.pictures import LABELS, SIDE_PX
from tests.training.helpers import tinynet
from training.config.config import Network
from training.data.pictures import example_pictures, scan_plain
from training.evaluation.scorer import Scorer
from training.networks.build import load_trained

ARTEFACTS = Path(__file__).parents[1] / "artefacts"
FLAGS = {
    "weights": None,
    "evaluate": None,
    "golden": None,
    "calibration": None,
    "resize": SIDE_PX,
    "crop": SIDE_PX,
    "interpolation": "bilinear",
    "max_batch": 3,
}
RAW = {"mean": "0,0,0", "std": ",".join(["0.0039215686"] * 3)}  # pixels from 0 to 255
UNIT = {"mean": "0,0,0", "std": "1,1,1"}
HALVES = {"mean": "0.5,0.5,0.5", "std": "0.5,0.5,0.5"}
NCHW = {"input_layout": "NCHW"}


@pytest.fixture
def imported(run_import, tmp_path):
    def run(name: str, labels: list[str], *, classes: str | None = None, **flags: object):
        (tmp_path / "names.txt").write_text("\n".join(labels))
        names = {"labels": ARTEFACTS / classes if classes else tmp_path / "names.txt"}
        return run_import(str(ARTEFACTS / f"{name}.onnx"), **{**FLAGS, **names, **flags})

    return run


@pytest.mark.parametrize(
    ("name", "flags", "activation"),
    [
        pytest.param("keras", RAW, "softmax", id="keras"),
        pytest.param("keras-logits", RAW, "softmax", id="keras-logits"),
        pytest.param("keras-sigmoids", RAW, "sigmoid", id="keras-sigmoids"),
        pytest.param("keras-binary", RAW, "softmax", id="keras-binary"),
        pytest.param("tf2onnx", RAW, "softmax", id="tf2onnx"),
        pytest.param("tf2onnx-nchw", RAW, "softmax", id="tf2onnx-nchw"),
        pytest.param("tflite", RAW, "softmax", id="tflite"),
        pytest.param("paddle", UNIT, "softmax", id="paddle"),
        pytest.param(
            "optimum", {**HALVES, **NCHW, "classes": "optimum.json"}, "softmax", id="optimum"
        ),
    ],
)
def test_file_of_a_tool_is_served_with_the_answers_of_the_tool(
    imported, tmp_path, name, flags, activation
):
    with np.load(ARTEFACTS / f"{name}.npz") as stored:
        pixels, expected = stored["pixels"], stored["answers"]
    two = ["other", "person"] if expected.shape[1] == 2 else LABELS

    result = imported(name, two, **flags)

    assert result.exit_code == 0, result.output
    version = read_version(tmp_path / "models", "tiny", 1)
    assert version.manifest.activation == activation
    if "classes" in flags:
        assert [label.name for label in version.manifest.labels] == LABELS
    scorer = Scorer(version.graph, version.manifest)
    rows = [to_row(row, version.manifest) for row in pixels]
    rounding = 0.02 if name == "tflite" else 1e-5
    np.testing.assert_allclose(scorer.probabilities_of_rows(rows), expected, atol=rounding)
    # The tools resize with Pillow, requests almost so.
    served = scorer.probabilities(scan_plain(example_pictures()))
    np.testing.assert_allclose(served, expected, atol=0.05)
    assert np.ptp(expected, axis=0).max() > 0.5  # the network tells the pictures apart


def test_file_that_is_quantized_dynamically_is_refused(imported):
    result = imported("optimum-int8", LABELS, **HALVES, **NCHW)

    assert result.exit_code == 2
    assert "depend on the batch size, because the graph quantizes dynamically" in result.output


@pytest.mark.parametrize("name", ["scikit-learn", "lightgbm"])
def test_file_for_features_is_refused(imported, name):
    result = imported(name, LABELS, **UNIT)

    assert result.exit_code == 2
    assert "N x 48, not pictures with 4 axes" in result.output


def test_checkpoint_of_lightning_is_read():
    tinynet.register()
    path = ARTEFACTS / "lightning.ckpt"

    network, weights = load_trained(
        Network(architecture=tinynet.ARCHITECTURE, weights=str(path)), 3
    )

    stored = torch.load(path, weights_only=True)["state_dict"]
    assert weights.source == "file lightning.ckpt, state_dict"
    found = network.state_dict()
    assert {f"model.{name}" for name in found} <= set(stored)
    assert all(torch.equal(stored[f"model.{name}"], value) for name, value in found.items())
