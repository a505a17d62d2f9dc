import io
import json
import zipfile

import numpy as np
import pytest

from contract.arrays import ClassifierWeights, pack_arrays, read_classifier, unpack_arrays
from contract.errors import VersionCorrupt
from contract.manifest import parse_manifest
from contract.versions import Version
from tests.contract.manifests import fields, sha

WEIGHTS = ClassifierWeights(np.arange(12, dtype=np.float32).reshape(3, 4), np.ones(3, np.float32))
OUTPUTS = [
    {"name": "probabilities", "kind": "probabilities"},
    {"name": "feature_map", "kind": "feature_map", "layout": "NCHW"},
]


def saved(*, compressed=False, **arrays):
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def version(data, n_features=4):
    document = fields(classifier={"file": "classifier.npz", "n_features": n_features})
    document["graph"]["outputs"] = OUTPUTS
    document["files"]["classifier.npz"] = sha(data)
    return Version(parse_manifest(json.dumps(document)), "0" * 64, {"classifier.npz": data})


def test_arrays_round_trip_in_the_same_bytes():
    arrays = {"a": np.ones((2, 3), np.float32), "b": np.zeros(0, np.float32)}

    data = pack_arrays(arrays)

    found = unpack_arrays(data, ("a", "b"))
    assert data == pack_arrays(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


REFUSED = {
    "empty": (b"", "not an .npz"),
    "text": (b"text", "not an .npz"),
    "cut": (saved(a=np.ones(9, np.float32))[:-30], "not an .npz"),
    "npy": (b"\x93NUMPY" + bytes(100), "not an .npz"),
    "missing": (saved(b=np.ones(1, np.float32)), "not an .npz file with a"),
    "compressed": (saved(compressed=True, a=np.ones(9, np.float32)), "not an .npz"),
    "pickle": (saved(a=np.array([{}], dtype=object)), "not an .npz"),
    "float64": (saved(a=np.ones(1)), "a is not float32"),
    "nan": (saved(a=np.array([np.nan], np.float32)), "not finite"),
}


@pytest.mark.parametrize(("data", "message"), REFUSED.values(), ids=REFUSED)
def test_unpack_arrays_refuses_what_it_does_not_expect(data, message):
    with pytest.raises(ValueError, match=message):
        unpack_arrays(data, ("a",))


def test_unpack_arrays_with_a_header_that_claims_too_much_is_refused():
    """The header says 2**40 values, the member holds four bytes."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (2**40,)}
    )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.npy", header.getvalue() + b"1234")

    with pytest.raises(ValueError, match=r"not an \.npz"):
        unpack_arrays(buffer.getvalue(), ("a",))


def test_read_classifier_returns_what_was_written():
    found = read_classifier(version(WEIGHTS.to_file()))

    assert found is not None
    np.testing.assert_array_equal(found.weight, WEIGHTS.weight)
    np.testing.assert_array_equal(found.bias, WEIGHTS.bias)


def test_read_classifier_of_a_version_without_one_is_none():
    assert read_classifier(Version(parse_manifest(json.dumps(fields())), "0" * 64, {})) is None


@pytest.mark.parametrize(
    ("data", "n_features", "message"),
    [
        (WEIGHTS.to_file(), 5, r"the shapes are \(3, 4\) and \(3,\), the manifest says \(3, 5\)"),
        (ClassifierWeights(WEIGHTS.weight[:2], WEIGHTS.bias).to_file(), 4, r"\(2, 4\)"),
        (b"text", 4, "not an .npz file with weight, bias"),
    ],
    ids=["features", "classes", "text"],
)
def test_read_classifier_that_differs_from_the_manifest_is_refused(data, n_features, message):
    with pytest.raises(VersionCorrupt, match=f"classifier.npz: .*{message}"):
        read_classifier(version(data, n_features))
