"""Manifests of version 1, as committed with convserve before version 2, are still read."""

import json
from pathlib import Path

import pytest

from contract.errors import ManifestInvalid
from contract.manifest import EnergyRule, Manifest, dump_manifest, parse_manifest
from contract.upgrades import SCHEMA_VERSION, schema_version_of, upgrade
from contract.versions import read_version
from tests.contract.manifests import fields

VERSION_1 = Path(__file__).parent / "manifest_v1"
DIGITS, LITE0 = (
    VERSION_1 / name / "1" / "manifest.json" for name in ("digits", "efficientnet_lite0")
)


def version_1(**changes):
    return {**fields(schema_version=1), **changes}


@pytest.mark.parametrize("path", [DIGITS, LITE0], ids=["digits", "efficientnet_lite0"])
def test_committed_manifest_of_version_1_becomes_version_2(path):
    text = path.read_bytes()

    manifest = parse_manifest(text)

    assert json.loads(text)["schema_version"] == 1
    assert manifest.schema_version == SCHEMA_VERSION
    assert manifest.activation == "softmax"
    assert (manifest.classifier, manifest.layers, manifest.reference) == (None, None, None)
    assert parse_manifest(dump_manifest(manifest)) == manifest


@pytest.mark.parametrize("path", [DIGITS, LITE0], ids=["digits", "efficientnet_lite0"])
def test_upgrade_of_a_committed_manifest_keeps_every_other_field(path):
    before = json.loads(path.read_bytes())

    after = json.loads(dump_manifest(parse_manifest(path.read_bytes())))

    changed = {"schema_version", "calibration", "activation"}
    assert {k: v for k, v in before.items() if k not in changed} == {
        k: v for k, v in after.items() if k not in changed
    }


def test_upgrade_gives_the_energy_rule_its_kind():
    before = json.loads(DIGITS.read_bytes())["calibration"]["unlike"]

    rule = parse_manifest(DIGITS.read_bytes()).calibration.unlike

    assert rule == EnergyRule(
        threshold=before["threshold"], flagged_percent=before["flagged_percent"]
    )


def test_upgrade_drops_a_feature_map_of_unknown_layout():
    document = version_1()
    document["graph"]["outputs"].append({"name": "features", "kind": "feature_map"})

    manifest = Manifest.model_validate(upgrade(document))

    assert [output.kind for output in manifest.graph.outputs] == ["probabilities"]


def test_upgrade_leaves_the_given_document_alone():
    document = json.loads(DIGITS.read_bytes())

    upgrade(document)

    assert document == json.loads(DIGITS.read_bytes())


def test_manifest_without_a_schema_version_has_version_1():
    document = version_1()
    del document["schema_version"]

    assert schema_version_of(document) == 1
    assert parse_manifest(json.dumps(document)).schema_version == SCHEMA_VERSION


@pytest.mark.parametrize("field", ["activation", "classifier", "layers", "reference", "surprise"])
def test_manifest_of_version_1_with_a_newer_field_is_refused(field):
    with pytest.raises(ManifestInvalid, match=f"{field}: unknown field; schema version 1 does not"):
        parse_manifest(json.dumps(version_1(**{field: None})))


@pytest.mark.parametrize("calibration", [None, [], "text", {"unlike": 3}, {"unlike": []}])
def test_manifest_of_version_1_with_a_wrong_calibration_is_refused(calibration):
    with pytest.raises(ManifestInvalid, match="calibration"):
        parse_manifest(json.dumps(version_1(calibration=calibration)))


@pytest.mark.parametrize("graph", [None, [], {"outputs": 3}, {"outputs": [3]}])
def test_manifest_of_version_1_with_a_wrong_graph_is_refused(graph):
    with pytest.raises(ManifestInvalid, match="graph"):
        parse_manifest(json.dumps(version_1(graph=graph)))


def test_manifest_of_a_future_version_is_refused_with_what_to_do():
    message = "schema_version is 3, this convserve reads 1 to 2; upgrade convserve"

    with pytest.raises(ManifestInvalid, match=message):
        parse_manifest(json.dumps(fields(schema_version=3, marvel=True)))


@pytest.mark.parametrize("number", [0, -1, True, 1.5, "2", None])
def test_manifest_with_a_schema_version_that_is_no_number_is_refused(number):
    with pytest.raises(ManifestInvalid, match="schema_version: must be a whole number"):
        parse_manifest(json.dumps(fields(schema_version=number)))


def test_read_version_says_in_which_version_the_manifest_was_written():
    found = read_version(VERSION_1, "digits", 1)

    assert (found.schema_version, found.manifest.schema_version) == (1, SCHEMA_VERSION)
