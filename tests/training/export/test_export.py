import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import nn

from tests.training.helpers import tinynet
from training.errors import ExportFailed
from training.evaluation.session import open_session
from training.export import export
from training.export.export import INPUT, check_batches, strip_history
from training.networks.architectures import PixelsToProbabilities


def test_graph_answers_equal_torchs_at_every_batch_size(tiny_graph):
    worst = check_batches(tiny_graph, tinynet.wrapped(), tinynet.SIDE_PX, (1, 2, 7, 33))

    assert worst < 1e-6


def test_graph_takes_pixels_and_has_four_outputs(tiny_graph):
    session = open_session(tiny_graph)

    (entry,) = session.get_inputs()
    assert (entry.name, entry.type) == (INPUT, "tensor(uint8)")
    assert entry.shape == ["N", tinynet.SIDE_PX, tinynet.SIDE_PX, 3]
    assert [(o.name, o.shape) for o in session.get_outputs()] == [
        ("probabilities", ["N", 3]),
        ("logits", ["N", 3]),
        ("embedding", ["N", 6]),
        ("feature_map", ["N", 6, 16, 16]),
    ]


def test_all_outputs_equal_the_networks(tiny_graph):
    pixels = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)

    answers = open_session(tiny_graph).run(None, {INPUT: pixels})

    with torch.inference_mode():
        expected = tinynet.wrapped()(torch.from_numpy(pixels))
    for answer, tensor in zip(answers, expected, strict=True):
        np.testing.assert_allclose(answer, tensor.numpy(), atol=1e-5)


def test_wrapper_equals_the_plain_network_on_normalised_pixels():
    network = tinynet.TinyNet().eval()
    pixels = np.random.default_rng(2).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    normalised = (pixels / 255.0 - np.array(tinynet.MEAN)) / np.array(tinynet.STD)

    with torch.inference_mode():
        logits = tinynet.wrapped(network)(torch.from_numpy(pixels))[1]
        expected = network(torch.from_numpy(normalised.transpose(0, 3, 1, 2)).float())

    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)


def test_temperature_divides_the_logits_before_the_softmax_only():
    network = tinynet.TinyNet().eval()
    tempered = PixelsToProbabilities(network, tinynet.MEAN, tinynet.STD, 4.0)
    pixels = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)

    with torch.inference_mode():
        probabilities, logits = tempered(pixels)[:2]

    torch.testing.assert_close(probabilities, torch.softmax(logits / 4.0, dim=-1))


def test_graph_is_self_contained_and_has_no_build_metadata(tiny_graph):
    model = onnx.load_model_from_string(tiny_graph)

    assert {entry.domain for entry in model.opset_import} == {""}
    assert not model.metadata_props
    assert all(not node.metadata_props and not node.doc_string for node in model.graph.node)
    assert b".py" not in tiny_graph


def test_strip_history_removes_metadata_and_doc_strings():
    model = helper.make_model(
        helper.make_graph([helper.make_node("Relu", ["a"], ["b"])], "g", [], []), doc_string="x"
    )
    model.graph.node[0].metadata_props.add(key="stack", value="/somewhere/file.py")
    model.graph.doc_string = "y"

    strip_history(model)

    assert b"/somewhere" not in model.SerializeToString()
    assert not model.doc_string
    assert not model.graph.doc_string


class OtherNetwork(nn.Module):
    """Another network with the same signature."""

    def __init__(self, n_classes=3):
        super().__init__()
        self.n_classes = n_classes

    def forward(self, image):
        rows = torch.full((len(image), self.n_classes), 1.0 / self.n_classes)
        return (rows,)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        pytest.param(OtherNetwork(), "differs from the network", id="other-answers"),
        pytest.param(OtherNetwork(4), "gives shape", id="other-classes"),
    ],
)
def test_graph_of_another_network_is_refused(tiny_graph, network, message):
    with pytest.raises(ExportFailed, match=message):
        check_batches(tiny_graph, network, tinynet.SIDE_PX, (2,))


def test_graph_with_a_fixed_batch_size_is_refused(tiny_graph):
    model = onnx.load_model_from_string(tiny_graph)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2

    with pytest.raises(ExportFailed, match="a batch of 7 fails"):
        check_batches(model.SerializeToString(), tinynet.wrapped(), tinynet.SIDE_PX, (2, 7))


def test_export_of_a_network_torch_cannot_trace_is_refused(monkeypatch):
    def fail(*_):
        raise RuntimeError("cannot trace\nand much more")

    monkeypatch.setattr(export, "_run_exporter", fail)

    with pytest.raises(ExportFailed, match=r"cannot be exported: cannot trace$"):
        export.export(tinynet.wrapped(), 8)
