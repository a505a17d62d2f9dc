"""Imports of foreign ONNX files: which are accepted, and every reason to refuse one."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from contract.versions import read_version
from tests import tinymodel
from tests.training.helpers import tinynet
from training.errors import GraphRefused
from training.export import describe as graphs
from training.release import foreign

FLAGS = {
    "weights": None,
    "resize": 8,
    "crop": 8,
    "interpolation": "bilinear",
    "mean": "0.5,0.5,0.5",
    "std": "0.25,0.25,0.25",
    "calibration": None,
}


@pytest.fixture
def import_onnx(run_import, tmp_path):
    def run(data, **flags):
        (tmp_path / "net.onnx").write_bytes(data)
        return run_import(str(tmp_path / "net.onnx"), **{**FLAGS, **flags})

    return run


def graph(shape=("N", 3, 8, 8), dtype=TensorProto.FLOAT, *, tail=(), classes=3, name="scores"):
    """Returns a model: mean over the sides of a float input, then `tail` nodes to `name`."""
    channels_last = shape[-1] == 3
    nodes = [
        helper.make_node("Cast", ["image"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["values", "axes"], ["means"], keepdims=0),
        *(tail or [helper.make_node("Identity", ["means"], [name])]),
    ]
    axes = numpy_helper.from_array(np.array([1, 2] if channels_last else [2, 3]), "axes")

    return helper.make_model(
        helper.make_graph(
            nodes,
            "net",
            [helper.make_tensor_value_info("image", dtype, shape)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", classes])],
            [axes],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )


def bytes_of(model):
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("model", "layout", "dtype", "in_graph"),
    [
        pytest.param(graph(), "NCHW", "float32", False, id="float-nchw"),
        pytest.param(graph(("N", 8, 8, 3)), "NHWC", "float32", False, id="float-nhwc"),
        pytest.param(
            graph(("N", 8, 8, 3), TensorProto.UINT8), "NHWC", "uint8", True, id="uint8-nhwc"
        ),
    ],
)
def test_foreign_graph_is_published_unchanged(
    import_onnx, tmp_path, model, layout, dtype, in_graph
):
    result = import_onnx(bytes_of(model))

    assert result.exit_code == 0, result.output
    version = read_version(tmp_path / "models", "tiny", 1)
    entry = version.manifest.graph.input
    assert (entry.layout, entry.dtype) == (layout, dtype)
    assert version.manifest.preprocessing.in_graph is in_graph
    assert version.graph == bytes_of(model)
    assert version.manifest.graph.scores.kind == "logits"
    assert version.manifest.metrics
    assert version.manifest.metrics.top1_percent == 100.0
    assert version.manifest.parity is None
    assert version.manifest.provenance.weights_source == "ONNX file net.onnx"


def test_foreign_graph_with_a_fixed_batch_of_one_is_published(import_onnx, tmp_path):
    result = import_onnx(tinymodel.graph("float32", batch=1), scores="auto")

    assert result.exit_code == 0, result.output
    manifest = read_version(tmp_path / "models", "tiny", 1).manifest
    assert manifest.graph.fixed_batch_size == 1


def test_foreign_graph_with_an_output_without_shape_gets_one(import_onnx, tmp_path):
    model = graph()
    model.graph.output[0].type.tensor_type.ClearField("shape")

    result = import_onnx(bytes_of(model))

    assert result.exit_code == 0, result.output
    version = read_version(tmp_path / "models", "tiny", 1)
    output = onnx.load_model_from_string(version.graph).graph.output[0]
    assert output.type.tensor_type.shape.dim[1].dim_value == 3


def test_foreign_graph_with_probabilities_is_recognised(import_onnx, tmp_path):
    tail = [helper.make_node("Softmax", ["means"], ["scores"])]

    import_onnx(bytes_of(graph(tail=tail)))

    manifest = read_version(tmp_path / "models", "tiny", 1).manifest
    assert manifest.graph.scores.kind == "probabilities"


@pytest.mark.parametrize(
    ("scores", "kind"),
    [
        pytest.param([], "logits", id="logits"),
        pytest.param([("Softmax", {"axis": 1})], "probabilities", id="probabilities"),
    ],
)
def test_foreign_graph_with_a_convolution_at_the_end_gets_rows(import_onnx, tmp_path, scores, kind):
    """As SqueezeNet in the ONNX model zoo."""
    model = graph()
    del model.graph.node[:]
    steps = [("GlobalAveragePool", {}), ("Conv", {}), *scores]
    source = "image"
    for i, (operator, attributes) in enumerate(steps):
        result = "scores" if i == len(steps) - 1 else f"step{i}"
        inputs = [source, "kernel"] if operator == "Conv" else [source]
        model.graph.node.append(helper.make_node(operator, inputs, [result], **attributes))
        source = result
    kernel = 9 * np.eye(3, dtype=np.float32)[:, :, None, None]
    model.graph.initializer.append(numpy_helper.from_array(kernel, "kernel"))
    for _ in range(2):
        model.graph.output[0].type.tensor_type.shape.dim.add(dim_value=1)

    result = import_onnx(bytes_of(model))

    assert result.exit_code == 0, result.output
    version = read_version(tmp_path / "models", "tiny", 1)
    assert version.manifest.graph.scores.kind == kind
    assert version.manifest.metrics
    assert version.manifest.metrics.top1_percent == 100.0
    output = onnx.load_model_from_string(version.graph).graph.output[0]
    assert [axis.dim_value for axis in output.type.tensor_type.shape.dim][1:] == [3]


def test_foreign_graph_whose_nodes_are_out_of_order_is_sorted(import_onnx, tmp_path):
    """As onnxruntime's converter to float16 leaves them."""
    model = graph()
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes[::-1])

    result = import_onnx(bytes_of(model))

    assert result.exit_code == 0, result.output
    version = read_version(tmp_path / "models", "tiny", 1)
    operators = [node.op_type for node in onnx.load_model_from_string(version.graph).graph.node]
    assert operators == ["Cast", "ReduceMean", "Identity"]
    assert version.manifest.metrics
    assert version.manifest.metrics.top1_percent == 100.0


@pytest.mark.parametrize("shape", [("N", 1, 8, 8), ("N", 8, 8, 1)], ids=["nchw", "nhwc"])
def test_foreign_graph_for_grey_pictures_is_refused_with_the_layer_to_add(shape):
    with pytest.raises(GraphRefused, match=r"grey pictures, .*Grayscale"):
        graphs.describe_input(graph(shape, classes=1))


def test_foreign_graph_is_quantized_with_the_int8_flag(
    run_import, tmp_path, tiny_graph, colours_dir
):
    (tmp_path / "net.onnx").write_bytes(tiny_graph)
    flags = {**FLAGS, "resize": 36, "crop": tinynet.SIDE_PX, "output": "logits"}

    result = run_import(
        str(tmp_path / "net.onnx"),
        **{**flags, "int8": True, "calibration": colours_dir, "resize_mode": "squash"},
    )

    assert result.exit_code == 0, result.output
    manifest = read_version(tmp_path / "models", "tiny", 1).manifest
    assert manifest.quantization is not None
    assert manifest.parity is None
    assert manifest.preprocessing.resize_mode == "squash"


def with_external_data():
    model = graph()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    return model


def with_domain(domain):
    model = graph()
    model.graph.node[-1].domain = domain
    model.opset_import.append(helper.make_opsetid(domain, 1))
    return model


def with_domain_in_a_subgraph():
    branch = helper.make_graph(
        [helper.make_node("Evil", ["means"], ["out"], domain="evil")], "branch", [], []
    )
    node = helper.make_node("If", ["flag"], ["scores"], then_branch=branch, else_branch=branch)
    return graph(tail=[node])


def with_a_circle():
    return graph(
        tail=[
            helper.make_node("Add", ["means", "scores"], ["half"]),
            helper.make_node("Identity", ["half"], ["scores"]),
        ]
    )


def with_two_inputs():
    model = graph()
    model.graph.input.append(helper.make_tensor_value_info("other", TensorProto.FLOAT, ["N"]))
    return model


def with_two_outputs():
    tail = [
        helper.make_node("Identity", ["means"], ["scores"]),
        helper.make_node("Identity", ["means"], ["others"]),
    ]
    model = graph(tail=tail)
    model.graph.output.append(helper.make_tensor_value_info("others", TensorProto.FLOAT, ["N", 3]))
    return model


def with_old_opset():
    model = graph()
    model.opset_import[0].version = 6
    return model


def with_training_info():
    model = graph()
    model.training_info.add()
    return model


def with_nan():
    return graph(tail=[helper.make_node("Log", ["minus"], ["scores"])], classes=3)


def that_mixes_the_batch():
    tail = [
        helper.make_node("ReduceMean", ["means", "first"], ["all"], keepdims=1),
        helper.make_node("Add", ["means", "all"], ["scores"]),
    ]
    model = graph(tail=tail)
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "first"))
    return model


def that_answers_nan():
    tail = [
        helper.make_node("Sub", ["means", "means"], ["zero"]),
        helper.make_node("Div", ["zero", "zero"], ["scores"]),
    ]
    return graph(tail=tail)


def that_takes_one_picture_only():
    """Declares a dynamic batch size but can run only one picture."""
    model = graph(tail=[helper.make_node("Reshape", ["means", "shape"], ["scores"])])
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 3]), "shape"))
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    return model


def with_a_map():
    model = graph()
    node = helper.make_node(
        "ZipMap", ["scores"], ["map"], domain="ai.onnx.ml", classlabels_strings=["a", "b", "c"]
    )
    model.graph.node.append(node)
    kind = helper.make_map_type_proto(
        TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    )
    value = helper.make_value_info("map", helper.make_sequence_type_proto(kind))
    model.graph.output[0].CopyFrom(value)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    return model


def with_output_type(dtype):
    model = graph(tail=[helper.make_node("Cast", ["means"], ["scores"], to=dtype)])
    model.graph.output[0].type.tensor_type.elem_type = dtype
    return model


def that_joins_its_rows():
    model = graph(tail=[helper.make_node("ReduceMean", ["means", "first"], ["scores"])])
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "first"))
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "rows"
    return model


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(bytes_of(that_takes_one_picture_only()), "fails to run", id="one-picture"),
        pytest.param(bytes_of(that_joins_its_rows()), "have the shape", id="joined-rows"),
        pytest.param(b"no graph", "not an ONNX file", id="not-onnx"),
        pytest.param(b"", "net.onnx is empty", id="empty"),
        pytest.param(
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
            "net.onnx is a pointer of Git LFS, not the file itself; run git lfs pull",
            id="git-lfs",
        ),
        pytest.param(b"<!DOCTYPE html><html>", "net.onnx is a web page", id="web-page"),
        pytest.param(bytes_of(with_external_data()), "data outside the folder", id="external"),
        pytest.param(bytes_of(with_domain("evil")), "the domain 'evil'", id="domain"),
        pytest.param(
            bytes_of(with_domain("com.microsoft")),
            "import the graph that onnxruntime made",
            id="microsoft",
        ),
        pytest.param(bytes_of(with_a_circle()), "depend on each other in a circle", id="circle"),
        pytest.param(bytes_of(with_domain_in_a_subgraph()), "the domain 'evil'", id="subgraph"),
        pytest.param(bytes_of(with_old_opset()), "opset 6 is below 7", id="opset"),
        pytest.param(bytes_of(with_training_info()), "training information", id="training"),
        pytest.param(bytes_of(with_nan()), "checker refuses", id="invalid"),
        pytest.param(bytes_of(with_two_inputs()), "2 inputs, not 1: '", id="two-inputs"),
        pytest.param(
            bytes_of(graph(dtype=TensorProto.INT64)), "neither float32 nor uint8", id="int64"
        ),
        pytest.param(bytes_of(graph(("N", 3, 8))), "checker refuses", id="rank"),
        pytest.param(bytes_of(graph((4, 3, 8, 8))), "fixed to 4", id="batch"),
        pytest.param(
            bytes_of(graph(dtype=TensorProto.FLOAT16)), "the input is float16", id="float16"
        ),
        pytest.param(bytes_of(graph(("N", 3, 8, 9))), "fixed square", id="oblong"),
        pytest.param(
            bytes_of(graph(("N", "C", "H", "W"))), "Set --input-layout", id="all-axes-open"
        ),
        pytest.param(
            bytes_of(graph(("N", 4, 8, 8), classes=4)), "Set --input-layout", id="channels"
        ),
        pytest.param(
            bytes_of(graph(dtype=TensorProto.UINT8)), "a uint8 input must be NHWC", id="uint8-nchw"
        ),
        pytest.param(bytes_of(graph(("N", 3, 16, 16))), "--crop is 8", id="crop"),
        pytest.param(
            bytes_of(with_output_type(TensorProto.FLOAT16)),
            "'scores' is float16 (N x 3); export the network with float32",
            id="float16-output",
        ),
        pytest.param(bytes_of(with_a_map()), "without ZipMap", id="zipmap"),
        pytest.param(bytes_of(with_two_outputs()), "name it with --output", id="two-outputs"),
        pytest.param(bytes_of(that_answers_nan()), "NaN or infinite", id="nan"),
        pytest.param(bytes_of(that_mixes_the_batch()), "depend on the batch size", id="mixing"),
    ],
)
def test_foreign_graph_that_cannot_be_served_is_refused(import_onnx, tmp_path, data, message):
    result = import_onnx(data)

    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        pytest.param({"resize": None, "mean": None}, "--resize, --mean", id="missing"),
        pytest.param({"mean": "1,2"}, "not three numbers", id="mean"),
        pytest.param({"std": "0,1,1"}, "preprocessing: --std must be positive", id="std"),
        pytest.param({"resize": 4}, "--crop must not exceed --resize", id="resize-below-crop"),
        pytest.param(
            {"mean": "123.675,116.28,103.53", "std": "58.395,57.12,57.375"},
            "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225",
            id="pixels-to-255",
        ),
        pytest.param(
            {"mean": "104,117,123", "std": "1,1,1"}, "--std 0.003922,0.003922", id="caffe"
        ),
        pytest.param({"mean": "0,0,0", "std": "255,255,255"}, "--std 1,1,1", id="std-of-255"),
        pytest.param({"interpolation": "cubic"}, "'cubic' is not one of", id="interpolation"),
        pytest.param({"output": "missing"}, "no output 'missing'", id="output"),
        pytest.param({"license": None}, "--license", id="licence"),
        pytest.param({"weights": "net.pth"}, "an ONNX file has its weights", id="weights"),
        pytest.param({"input_layout": "NHWC"}, "expected a fixed square", id="layout"),
    ],
)
def test_foreign_graph_with_unusable_flags_is_refused(import_onnx, flags, message):
    result = import_onnx(bytes_of(graph()), **flags)

    assert result.exit_code == 2
    assert message in result.output


def test_foreign_graph_with_other_labels_is_refused(import_onnx, tmp_path):
    (tmp_path / "two.txt").write_text("a\nb")

    result = import_onnx(bytes_of(graph()), labels=tmp_path / "two.txt")

    assert result.exit_code == 2
    assert "3 classes, but there are 2 labels" in result.output


def test_foreign_graph_with_a_dynamic_number_of_classes_and_other_labels_is_refused(
    import_onnx, tmp_path
):
    (tmp_path / "two.txt").write_text("a\nb")

    result = import_onnx(bytes_of(graph(classes="C")), labels=tmp_path / "two.txt")

    assert result.exit_code == 2
    assert "the graph has 3 classes, but --labels has 2" in result.output


@pytest.mark.parametrize("shape", [("N", 3), ("N", 3, 8), ("N", 1, 3, 8, 8)])
def test_input_of_another_rank_is_refused(shape):
    with pytest.raises(GraphRefused, match="not pictures with 4 axes"):
        graphs.describe_input(graph(shape))


def test_foreign_graph_behind_a_link_is_refused(run_import, tmp_path):
    (tmp_path / "real.onnx").write_bytes(bytes_of(graph()))
    (tmp_path / "net.onnx").symlink_to(tmp_path / "real.onnx")

    result = run_import(str(tmp_path / "net.onnx"), **FLAGS)

    assert result.exit_code == 2
    assert "net.onnx is a link, and links are not followed; copy the file" in result.output


def test_read_foreign_refuses_a_file_above_the_size_limit(tmp_path, monkeypatch):
    (tmp_path / "net.onnx").write_bytes(bytes_of(graph()))
    monkeypatch.setattr(foreign, "MAX_GRAPH_BYTES", 10)

    with pytest.raises(GraphRefused, match="larger than"):
        foreign.read_foreign(tmp_path / "net.onnx")


def test_exported_tiny_network_passes_the_onnx_checker(tiny_graph):
    model = onnx.load_model_from_string(tiny_graph)
    onnx.checker.check_model(model, full_check=True)

    assert [node.name for node in model.graph.input] == ["image"]
