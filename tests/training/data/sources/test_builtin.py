import importlib
import sys
import types
from inspect import signature

import numpy as np
import pytest
from PIL import Image

from contract.images import decode
from tests.training.helpers.picture_sets import label_names, sample_names
from training.data.sources.builtin import TORCHVISION_SETS
from training.data.sources.find import find
from training.errors import DataRefused
from training.system.torch_compat import prepare_torchvision


def test_find_digits_returns_the_whole_set_with_all_grey_levels(tmp_path):
    datasets = pytest.importorskip("sklearn.datasets")

    found = find("digits", cache_dir=tmp_path)

    assert label_names(found) == list("0123456789")
    assert len(found.samples) == 1797
    assert found.license == "CC-BY-4.0"
    pixels = np.asarray(decode(found.samples[5].read()))[..., 0].astype(float)
    assert np.array_equal(np.round(pixels * 16 / 255), datasets.load_digits().images[5])
    assert found.samples[5].index == datasets.load_digits().target[5]


def test_find_digits_without_scikit_learn_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)

    with pytest.raises(DataRefused, match="pip install scikit-learn"):
        find("digits", cache_dir=tmp_path)


class FakeSet:
    """Has the interface of a class of torchvision.datasets."""

    classes = ("frog", "ship")

    def __init__(self, root, train, download):
        assert download
        self.side = 4 if train else 6
        self.root = root

    def __len__(self):
        return 3

    def __getitem__(self, i):
        return Image.new("L" if i else "RGB", (self.side, self.side), 40 * i), i % 2


@pytest.fixture
def fake_torchvision(monkeypatch):
    """An empty module in place of `torchvision.datasets`."""
    module = types.ModuleType("torchvision.datasets")
    monkeypatch.setattr(importlib, "import_module", lambda _: module)
    return module


def test_find_torchvision_keeps_the_test_split_of_the_set(tmp_path, fake_torchvision):
    fake_torchvision.CIFAR10 = FakeSet

    found = find("torchvision:CIFAR10", cache_dir=tmp_path)

    assert found.name == "CIFAR10"
    assert label_names(found) == ["frog", "ship"]
    assert found.given_splits == {"train", "test"}
    assert sample_names(found)[0] == "test/00000.png"
    assert [sample.index for sample in found.samples] == [0, 1, 0, 0, 1, 0]
    assert decode(found.samples[0].read()).size == (6, 6)


def test_find_torchvision_without_class_names_uses_the_numbers(tmp_path, fake_torchvision):
    fake_torchvision.USPS = type("USPS", (FakeSet,), {"classes": None})

    assert label_names(find("torchvision:USPS", cache_dir=tmp_path)) == ["0", "1"]


@pytest.mark.parametrize("error", [RuntimeError("no route\nmore"), OSError("no route")])
def test_find_torchvision_without_a_network_is_refused_in_one_line(
    tmp_path, fake_torchvision, error
):
    def fail(**_):
        raise error

    fail.__name__ = "MNIST"
    fake_torchvision.MNIST = fail

    with pytest.raises(DataRefused, match=r"MNIST could not be downloaded .*: no route$"):
        find("torchvision:MNIST", cache_dir=tmp_path)


def test_find_torchvision_of_an_unknown_set_lists_the_supported_ones(tmp_path):
    with pytest.raises(
        DataRefused, match="Imagenet is not supported; use one of CIFAR10, CIFAR100"
    ):
        find("torchvision:Imagenet", cache_dir=tmp_path)


@pytest.mark.parametrize("name", TORCHVISION_SETS)
def test_torchvision_sets_exist_and_take_the_arguments_passed(name):
    prepare_torchvision()
    import torchvision.datasets

    assert {"root", "train", "download"} <= signature(
        getattr(torchvision.datasets, name)
    ).parameters.keys()
