import pytest

from training.errors import InputRefused
from training.release.sources import refuse_other_files


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("net.keras", 'load_model("net.keras").export("net.onnx"', id="keras"),
        pytest.param("net.H5", 'load_model("net.H5").export("net.onnx"', id="keras-2"),
        pytest.param("net.tflite", "tf2onnx.convert --tflite net.tflite", id="tflite"),
        pytest.param("frozen.pb", "tf2onnx.convert --saved-model FOLDER", id="tensorflow"),
        pytest.param("net.pdmodel", "paddle2onnx --model_dir . --model_filename net", id="paddle"),
        pytest.param("net.pt2", 'torch.export.load("net.pt2")', id="torch-export"),
        pytest.param("net.pth", "import ARCHITECTURE --weights net.pth", id="weights"),
        pytest.param("net.safetensors", "--weights net.safetensors", id="safetensors"),
        pytest.param("export.pkl", "torch.onnx.export and import that file", id="pickle"),
        pytest.param("net.ort", "import the .onnx file that it was made from", id="onnxruntime"),
        pytest.param("net.onnx.data", "import that .onnx file", id="data-of-onnx"),
        pytest.param("net.mlmodel", "export the network to ONNX where it was made", id="core-ml"),
    ],
)
def test_file_of_another_tool_is_refused_with_the_way_to_onnx(name, message):
    with pytest.raises(InputRefused) as caught:
        refuse_other_files(f"folder/{name}")

    assert str(caught.value).startswith(f"{name} is ")
    assert message in str(caught.value)


def test_file_without_a_known_suffix_is_refused_if_it_exists(tmp_path):
    (tmp_path / "net.xyz").write_bytes(b"")

    with pytest.raises(InputRefused, match=r"net\.xyz is no ONNX file"):
        refuse_other_files(str(tmp_path / "net.xyz"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param("saved_model.pb", "--saved-model net", id="tensorflow"),
        pytest.param("config.json", "optimum-cli export onnx --model net", id="hugging-face"),
    ],
)
def test_folder_of_another_tool_is_refused_with_the_way_to_onnx(tmp_path, content, message):
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / content).write_bytes(b"")

    with pytest.raises(InputRefused) as caught:
        refuse_other_files(str(tmp_path / "net"))

    assert message in str(caught.value)


def test_other_folder_is_refused_with_what_to_give(tmp_path):
    with pytest.raises(InputRefused, match=r"is a folder; give the \.onnx file in it"):
        refuse_other_files(str(tmp_path))


def is_refused(source: str) -> bool:
    try:
        refuse_other_files(source)
    except InputRefused:
        return True
    return False


@pytest.mark.parametrize("name", ["resnet18", "resnet50.a1_in1k", "tf_efficientnet_lite0.in1k"])
def test_name_of_an_architecture_is_no_file(name):
    assert not is_refused(name)
    assert is_refused(f"{name}.h5")


def test_folder_with_the_name_of_an_architecture_is_no_file_of_another_tool(tmp_path, monkeypatch):
    (tmp_path / "resnet18").mkdir()
    monkeypatch.chdir(tmp_path)

    assert [is_refused(name) for name in ("resnet18", str(tmp_path / "resnet18"))] == [False, True]
