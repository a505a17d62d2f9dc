"""ONNX files as the tools of others write them: served with the answers of their own runtime."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from onnxscript import FLOAT, script
from onnxscript import opset18 as op
from torch import nn

from contract.preprocessing import read_input
from contract.versions import Version, read_version
from tests import tinymodel
from tests.training.helpers import tinynet
from training.data.pictures import Picture
from training.evaluation.scorer import Scorer
from training.system.torch_compat import prepare_torchvision, timm

SIDE = tinynet.SIDE_PX
FLAGS = {
    "weights": None,
    "calibration": None,
    "evaluate": None,
    "resize": SIDE,
    "crop": SIDE,
    "interpolation": "bilinear",
    "mean": "0,0,0",
    "std": "1,1,1",
    "max_batch": 3,
}
Answers = Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]


class Colours(nn.Module):
    """The mean of each channel, times `gain`, then `tail`."""

    def __init__(self, tail: nn.Module, n_scores: int = 3, gain: float = 8.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 64, 3)  # large enough for torch to put it into another file
        self.linear = nn.Linear(64, n_scores)
        self.tail = tail
        with torch.no_grad():
            self.conv.weight.zero_()
            self.conv.weight[:3, :3, 1, 1] = torch.eye(3)
            torch.nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type] # it has one
            self.linear.weight.zero_()
            self.linear.weight[:, :3] = gain * torch.eye(3)[:n_scores]
            self.linear.bias.fill_(-gain / 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.tail(self.linear(self.conv(x).mean((2, 3))))
        return scores


def exported(net: nn.Module, path: Path, *, legacy: bool = True, n_examples: int = 2) -> Answers:
    """Writes a file with one of torch's two exporters; returns what torch answers.

    The legacy one takes a tenth of the time.
    """
    batch: dict[str, Any] = {"dynamic_shapes": ({0: "batch"},)}
    if legacy:
        names = {"input_names": ["input"], "output_names": ["output"]}
        axes = {"dynamic_axes": {"input": {0: "batch"}, "output": {0: "batch"}}}
        batch = {"dynamo": False, **names, **axes}
    example = torch.rand(n_examples, 3, SIDE, SIDE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each exporter announces the end of something
        torch.onnx.export(net.eval(), (example,), str(path), verbose=False, **batch)

    def answers(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        with torch.inference_mode():
            found: np.ndarray[Any, Any] = net(torch.from_numpy(rows)).numpy()
        return found

    return answers


def answers_of(path: Path) -> Answers:
    """Returns what onnxruntime answers with the file itself."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda rows: np.asarray(session.run(None, {name: rows})[0])


def softmax_of(answers: Answers) -> Answers:
    return lambda rows: torch.softmax(torch.from_numpy(answers(rows)), -1).numpy()


def torch_default(path: Path) -> Answers:
    answers = exported(Colours(nn.Identity()), path, legacy=False)
    assert path.with_suffix(".onnx.data").exists()
    return softmax_of(answers)


def torch_legacy(path: Path) -> Answers:
    return softmax_of(exported(Colours(nn.Identity()), path))


def torch_log_softmax(path: Path) -> Answers:
    return softmax_of(exported(Colours(nn.LogSoftmax(-1)), path))


def torch_softmax(path: Path) -> Answers:
    return exported(Colours(nn.Softmax(-1)), path)


def torchvision_tutorial(path: Path) -> Answers:
    """The weights are inputs too, and the batch has the size of the example."""
    prepare_torchvision()
    from torchvision.models import squeezenet1_1

    torch.manual_seed(0)
    net = squeezenet1_1(num_classes=3).eval()
    with torch.no_grad():
        net.classifier[1].weight.mul_(40)
    n_weights = len(net.state_dict())
    names = ["actual_input_1", *(f"learned_{i}" for i in range(n_weights))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            (torch.rand(1, 3, SIDE, SIDE),),
            str(path),
            dynamo=False,
            input_names=names,
            output_names=["output1"],
            keep_initializers_as_inputs=True,
            verbose=False,
        )

    def answers(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        with torch.inference_mode():
            found: np.ndarray[Any, Any] = net(torch.from_numpy(rows)).softmax(-1).numpy()
        return found

    return answers


def timm_network(path: Path) -> Answers:
    torch.manual_seed(0)
    net = timm().create_model("test_resnet.r160_in1k", num_classes=3, exportable=True).eval()
    with torch.no_grad():
        net.get_classifier().weight.mul_(40)
    return softmax_of(exported(net, path))


class _Rows(CalibrationDataReader):  # type: ignore[misc] # onnxruntime has no types
    def __init__(self, name: str) -> None:
        colours = np.eye(3, dtype=np.float32)[:, :, None, None]
        self._rows = iter([{name: colours * np.ones((1, 1, SIDE, SIDE), np.float32)}])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._rows, None)


def onnxruntime_int8(path: Path) -> Answers:
    """The softmax is quantized too, so the probabilities are rounded to 1/256."""
    source = path.with_name("float.onnx")
    exported(Colours(nn.Softmax(-1)), source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_static(str(source), str(path), _Rows("input"), quant_format=QuantFormat.QDQ)
    last = onnx.load(path).graph.node[-1].op_type
    assert last == "DequantizeLinear"
    return answers_of(path)


_FLOAT: Any = FLOAT
_PIXELS = _FLOAT[None, 3, None, None]
_SCORES = _FLOAT[None, 3]
_op: Any = op


@script(default_opset=op)
def _means(pixels):
    return _op.ReduceMean(pixels, _op.Constant(value_ints=[2, 3]), keepdims=0)


@script(default_opset=op)
def _in_onnxscript(pixels: _PIXELS) -> _SCORES:  # type: ignore[valid-type]
    """Calls a function of its own, which becomes one of the file."""
    return _op.Softmax(_means(pixels) * _op.Constant(value_float=8.0), axis=1)  # type: ignore[no-any-return]


def onnxscript(path: Path) -> Answers:
    model = _in_onnxscript.to_model_proto()
    assert model.functions
    onnx.save(model, path)
    return answers_of(path)


def keras(path: Path) -> Answers:
    """As tf2onnx writes a network of Keras: NHWC with a transpose, named axes, softmax inside."""
    nodes = [
        helper.make_node("Transpose", ["input_1"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("GlobalAveragePool", ["nchw"], ["pooled"]),
        helper.make_node("Squeeze", ["pooled", "axes"], ["means"]),
        helper.make_node("MatMul", ["means", "weights"], ["products"]),
        helper.make_node("Add", ["products", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["predictions"]),
    ]
    constants = [
        numpy_helper.from_array(np.array([2, 3]), "axes"),
        numpy_helper.from_array(8 * np.eye(3, dtype=np.float32), "weights"),
        numpy_helper.from_array(np.zeros(3, np.float32), "bias"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "tf2onnx",
        [value("input_1", TensorProto.FLOAT, ["unk__1", SIDE, SIDE, 3])],
        [value("predictions", TensorProto.FLOAT, ["unk__2", 3])],
        constants,
    )
    opsets = [helper.make_opsetid("", 15), helper.make_opsetid("ai.onnx.ml", 2)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return answers_of(path)


@pytest.fixture
def published(run_import, tmp_path) -> Callable[..., tuple[Version, str]]:
    def run(path: Path, **flags: object) -> tuple[Version, str]:
        result = run_import(str(path), **{**FLAGS, **flags})
        assert result.exit_code == 0, result.output
        return read_version(tmp_path / "models", "tiny", 1), result.output

    return run


@pytest.mark.parametrize(
    ("artefact", "flags"),
    [
        pytest.param(torch_default, {}, id="torch"),
        pytest.param(torch_legacy, {}, id="torch-legacy"),
        pytest.param(torch_log_softmax, {}, id="torch-log-softmax"),
        pytest.param(torch_softmax, {}, id="torch-softmax"),
        pytest.param(torchvision_tutorial, {}, id="torchvision-tutorial"),
        pytest.param(timm_network, {}, id="timm"),
        pytest.param(onnxruntime_int8, {}, id="onnxruntime-int8"),
        pytest.param(onnxscript, {}, id="onnxscript"),
        pytest.param(keras, {}, id="keras"),
    ],
)
def test_file_of_another_tool_is_served_with_its_own_answers(
    published, tmp_path, colour_pictures, artefact, flags
):
    answers = artefact(tmp_path / "net.onnx")

    version, _ = published(tmp_path / "net.onnx", **flags)

    assert version.manifest.activation == "softmax"
    check_answers(version, colour_pictures, answers)


def check_answers(version: Version, pictures: list[Picture], answers: Answers) -> None:
    rows = np.stack([read_input(picture.data, version.manifest) for picture in pictures])
    expected = answers(rows)
    found = Scorer(version.graph, version.manifest).probabilities(pictures)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(found, axis=0).max() > 0.2  # the network tells the pictures apart


def test_network_with_a_sigmoid_is_served_with_a_probability_for_each_label(
    published, tmp_path, colour_pictures
):
    answers = exported(Colours(nn.Sigmoid()), tmp_path / "net.onnx")

    version, output = published(tmp_path / "net.onnx")

    assert version.manifest.activation == "sigmoid"
    assert version.manifest.graph.scores.kind == "probabilities"
    assert "any number of labels" in output
    check_answers(version, colour_pictures, answers)


def test_logits_of_a_network_for_any_number_of_labels_get_a_sigmoid_if_the_user_says_so(
    published, tmp_path, colour_pictures
):
    logits = exported(Colours(nn.Identity()), tmp_path / "net.onnx")

    version, _ = published(tmp_path / "net.onnx", activation="sigmoid")

    assert version.manifest.activation == "sigmoid"
    assert version.manifest.graph.scores.kind == "logits"
    check_answers(
        version, colour_pictures, lambda rows: torch.sigmoid(torch.from_numpy(logits(rows))).numpy()
    )


@pytest.mark.parametrize(
    ("tail", "flags"),
    [
        pytest.param(nn.Sigmoid(), {}, id="sigmoid"),
        pytest.param(nn.Identity(), {}, id="logit"),
        pytest.param(nn.Sequential(nn.Sigmoid(), nn.Flatten(0)), {}, id="without-an-axis"),
    ],
)
def test_one_score_with_two_labels_is_served_as_two_classes(
    published, tmp_path, colour_pictures, tail, flags
):
    scores = exported(Colours(tail, n_scores=1), tmp_path / "net.onnx")
    (tmp_path / "two.txt").write_text("cat\ndog\n")

    version, output = published(tmp_path / "net.onnx", labels=tmp_path / "two.txt", **flags)

    def both(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        found = torch.from_numpy(scores(rows)).reshape(-1, 1)
        dog = torch.sigmoid(found) if isinstance(tail, nn.Identity) else found
        return torch.cat([1 - dog, dog], dim=1).numpy()

    assert version.manifest.activation == "softmax"
    assert "taken for the probability of 'dog'" in output
    check_answers(version, colour_pictures, both)


@pytest.mark.parametrize(
    "tail",
    [
        pytest.param(nn.Sigmoid(), id="rows"),
        pytest.param(nn.Sequential(nn.Sigmoid(), nn.Flatten(0)), id="without-an-axis"),
    ],
)
def test_one_score_with_one_label_is_served_with_its_own_probability(
    published, tmp_path, colour_pictures, tail
):
    scores = exported(Colours(tail, n_scores=1), tmp_path / "net.onnx")
    (tmp_path / "one.txt").write_text("dog\n")

    version, _ = published(tmp_path / "net.onnx", labels=tmp_path / "one.txt")

    assert version.manifest.activation == "sigmoid"
    check_answers(version, colour_pictures, lambda rows: scores(rows).reshape(-1, 1))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        pytest.param({"int8": True}, "--int8 of a network for any number of labels", id="int8"),
        pytest.param({"fp16": True}, "--fp16 of a network for any number of labels", id="fp16"),
        pytest.param({"evaluate": "colours"}, "--evaluate measures one label", id="evaluate"),
        pytest.param({"activation": "softmax"}, "the graph, which ends in Sigmoid", id="softmax"),
        pytest.param({"scores": "logits"}, "the graph, which ends in Sigmoid", id="logits"),
    ],
)
def test_network_with_a_sigmoid_is_refused_with_flags_for_one_label(
    run_import, tmp_path, colours_dir, flags, message
):
    exported(Colours(nn.Sigmoid()), tmp_path / "net.onnx")
    flags = {key: colours_dir if value == "colours" else value for key, value in flags.items()}

    result = run_import(str(tmp_path / "net.onnx"), **{**FLAGS, **flags})

    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_network_with_a_sigmoid_is_lowered_with_pictures_of_its_labels(
    published, tmp_path, colours_dir, precision
):
    exported(Colours(nn.Sigmoid()), tmp_path / "net.onnx")

    version, output = published(tmp_path / "net.onnx", calibration=colours_dir, **{precision: True})

    assert version.manifest.precision == precision
    assert "same labels above 0.5 as float in 100.00%" in output
    assert (
        "the labels above 0.5 are the float graph's" in version.contents["MODEL_CARD.md"].decode()
    )
    last = onnx.load_model_from_string(version.graph).graph.node[-1]
    assert (last.op_type, list(last.output)) == ("Sigmoid", ["output"])


def with_open_axes(path: Path) -> None:
    """As Hugging Face's exporter writes it: every axis of the input has a name, but no size."""
    model = onnx.load_model_from_string(tinymodel.graph("float32"))
    for axis, name in zip(
        model.graph.input[0].type.tensor_type.shape.dim,
        ("batch_size", "num_channels", "height", "width"),
        strict=True,
    ):
        axis.Clear()
        axis.dim_param = name
    onnx.save(model, path)


def test_open_axes_have_the_size_of_the_crop(published, tmp_path, colour_pictures):
    with_open_axes(tmp_path / "net.onnx")

    version, _ = published(tmp_path / "net.onnx", input_layout="NCHW")

    assert version.manifest.graph.input.shape == (None, 3, SIDE, SIDE)
    check_answers(version, colour_pictures, softmax_of(answers_of(tmp_path / "net.onnx")))


def test_open_axes_without_a_layout_are_refused(run_import, tmp_path):
    with_open_axes(tmp_path / "net.onnx")

    result = run_import(str(tmp_path / "net.onnx"), **FLAGS)

    assert result.exit_code == 2
    assert "Set --input-layout" in result.output


def test_batch_of_the_example_is_refused_with_the_way_to_export_another(run_import, tmp_path):
    exported(Colours(nn.Identity()), tmp_path / "net.onnx")
    model = onnx.load(tmp_path / "net.onnx")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 10
    onnx.save(model, tmp_path / "net.onnx")

    result = run_import(str(tmp_path / "net.onnx"), **FLAGS)

    assert result.exit_code == 2
    assert "fixed to 10 pictures" in result.output
    assert "dynamic_axes" in result.output


def moved_data(folder: Path) -> str:
    (folder / "net.onnx.data").rename(folder.parent / "elsewhere")
    return "net.onnx.data, which is missing"


def data_behind_a_link(folder: Path) -> str:
    target = folder.parent / "elsewhere"
    (folder / "net.onnx.data").rename(target)
    (folder / "net.onnx.data").symlink_to(target)
    return "not a regular file of the same folder"


def data_that_is_cut(folder: Path) -> str:
    (folder / "net.onnx.data").write_bytes(b"short")
    return "cannot be read"


def data_located_at(location: str) -> Callable[[Path], str]:
    def change(folder: Path) -> str:
        model = onnx.load(folder / "net.onnx", load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location
        (folder / "net.onnx").write_bytes(model.SerializeToString())
        return "data outside the folder is refused"

    return change


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(moved_data, id="missing"),
        pytest.param(data_behind_a_link, id="link"),
        pytest.param(data_that_is_cut, id="cut"),
        pytest.param(data_located_at("../elsewhere"), id="parent"),
        pytest.param(data_located_at("/etc/passwd"), id="absolute"),
        pytest.param(data_located_at("C:\\elsewhere"), id="windows"),
        pytest.param(data_located_at(""), id="empty"),
    ],
)
def test_weights_that_are_not_in_the_folder_are_refused(run_import, tmp_path, change):
    folder = tmp_path / "export"
    folder.mkdir()
    exported(Colours(nn.Identity()), folder / "net.onnx")
    model = onnx.load(folder / "net.onnx")
    onnx.save(model, folder / "net.onnx", save_as_external_data=True, location="net.onnx.data")
    message = change(folder)

    result = run_import(str(folder / "net.onnx"), **FLAGS)

    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "models").exists()


def test_published_graph_does_not_tell_where_torch_wrote_it(published, tmp_path):
    exported(Colours(nn.Identity()), tmp_path / "net.onnx", legacy=False)
    assert b"test_artefacts" in (tmp_path / "net.onnx").read_bytes()

    version, _ = published(tmp_path / "net.onnx")

    assert b"test_artefacts" not in version.graph
