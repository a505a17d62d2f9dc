"""Says what to do with a SOURCE of `import` that is a file of another tool, and no ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from training.errors import InputRefused
from training.networks.tensor_files import SUFFIXES as WEIGHTS

_IMPORT: Final = "and import that file"
_ADVICE: Final = {
    ".pt2": 'a program of torch.export; run torch.onnx.export(torch.export.load("{name}"), f="net.onnx") '
    + _IMPORT,
    ".keras": "a network of Keras; where it was made, run "
    'keras.saving.load_model("{name}").export("net.onnx", format="onnx") ' + _IMPORT,
    ".tflite": "a network of TensorFlow Lite; run python -m tf2onnx.convert --tflite {name} --output "
    f"net.onnx {_IMPORT}",
    ".pb": "a graph of TensorFlow; run python -m tf2onnx.convert --saved-model FOLDER --output net.onnx on "
    f"the folder that it is in {_IMPORT}",
    ".pdmodel": "a network of Paddle; run paddle2onnx --model_dir . --model_filename {name} --params_filename "
    f"PARAMS --save_file net.onnx {_IMPORT}",
    ".ort": "onnxruntime's own format; import the .onnx file that it was made from",
    ".pkl": "a pickle, which is a program and is refused; where it was made, export the network with "
    f"torch.onnx.export {_IMPORT}",
}
_ADVICE[".data"] = (
    "weights of a graph in another file; import that .onnx file, with this one beside it"
)
_ADVICE[".h5"] = _ADVICE[".hdf5"] = _ADVICE[".keras"]
_WEIGHTS_ADVICE: Final = (
    "weights, without the network; give them with the name of a timm architecture: convserve-train import "
    f"ARCHITECTURE --weights {{name}}. Export another network with torch.onnx.export {_IMPORT}"
)
_OTHERS: Final = (".mlmodel", ".mlpackage", ".engine", ".plan", ".caffemodel", ".params", ".nnef")
_OTHER_ADVICE: Final = f"no ONNX file; export the network to ONNX where it was made {_IMPORT}"
_FOLDERS: Final = {
    "saved_model.pb": "a SavedModel of TensorFlow; run python -m tf2onnx.convert --saved-model {name} --output "
    f"net.onnx {_IMPORT}",
    "config.json": "a network of Hugging Face; run optimum-cli export onnx --model {name} --task "
    "image-classification OUT and import OUT/model.onnx, with --labels OUT/config.json",
}


def refuse_other_files(source: str) -> None:
    """Raises InputRefused, with the way to an ONNX file, if SOURCE is a file or folder of another tool."""
    path = Path(source)
    advice = _of_folder(path) if path.is_dir() else _of_suffix(path.suffix.lower())
    if advice is None and path.is_file():
        advice = _OTHER_ADVICE
    if advice is not None:
        raise InputRefused(f"{path.name} is {advice.format(name=path.name)}")


def _of_suffix(suffix: str) -> str | None:
    if suffix in _ADVICE:
        return _ADVICE[suffix]
    if suffix in WEIGHTS:
        return _WEIGHTS_ADVICE
    return _OTHER_ADVICE if suffix in _OTHERS else None


def _of_folder(folder: Path) -> str | None:
    if folder.suffix in _OTHERS:
        return _OTHER_ADVICE
    found = (advice for name, advice in _FOLDERS.items() if (folder / name).is_file())
    # A folder may have the name of an architecture, and then it is the architecture that is meant.
    other = "a folder; give the .onnx file in it" if len(folder.parts) > 1 else None
    return next(found, other)
