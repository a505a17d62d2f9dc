from __future__ import annotations

import json

import pytest

from contract.comparison import compare_labels
from contract.errors import ModelError
from contract.manifest import Label
from contract.versions import find_versions, read_version
from convserve.versions import republish
from convserve.versions.relabel import RelabellingInvalid, read_names, relabel, rename
from service.models.repository import EngineConfig
from tests import tinymodel

CONFIG = EngineConfig("cpu", max_batch_size=2)
CRANES = (
    Label(index=0, name="crane", synset="n02012849"),
    Label(index=1, name="crane", synset="n03126707"),
    Label(index=2, name="finch", synset="n01532829"),
)


def names(labels):
    return [label.name for label in labels]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("n.json", '{"red": "rot", "green": "grün, hell"}'),
        ("n.JSON", '\ufeff{"red": "rot", "green": "grün, hell"}'),
        ("n.toml", 'red = "rot"\n"green" = "grün, hell"\n'),
        ("n.csv", 'red,rot\n\n green , "grün, hell"\n'),
        ("n.csv", '\ufeffOld,New\r\nred,rot\r\ngreen,"grün, hell"\r\n'),
    ],
    ids=["json", "json_bom", "toml", "csv", "csv_header_bom"],
)
def test_read_names_reads_each_format(tmp_path, file, content):
    (tmp_path / file).write_bytes(content.encode())

    assert read_names(tmp_path / file) == [("red", "rot"), ("green", "grün, hell")]


def test_read_names_keeps_equal_old_names_of_json(tmp_path):
    (tmp_path / "n.json").write_text('{"a": "b", "a": "c"}')

    assert read_names(tmp_path / "n.json") == [("a", "b"), ("a", "c")]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("n.txt", b"a,b", "must end in one of"),
        ("n.csv", "a,b".encode("utf-16"), "save it as UTF-8"),
        ("n.csv", b"a;b\n", "line 1 is not an old and a new name"),
        ("n.csv", b"a,b\nc,d,e\n", "line 2 is not an old and a new name"),
        ("n.csv", b'a,"b\n', "cannot be read as csv"),
        ("n.csv", b"old,new\n", "has no names"),
        ("n.json", b"{", "cannot be read as json"),
        ("n.json", b'["a"]', "expected one object"),
        ("n.json", b'{"a": {"b": "c"}}', "the new name of 'a' is not a text"),
        ("n.json", b'{"a":' * 100_000, "recursion"),
        ("n.toml", b'a.b = "c"', "names with dots need quotes"),
        ("n.toml", b"a = ", "cannot be read as toml"),
    ],
)
def test_read_names_refuses_another_file_with_the_reason(tmp_path, file, content, message):
    (tmp_path / file).write_bytes(content)

    with pytest.raises(RelabellingInvalid, match=message):
        read_names(tmp_path / file)


def test_rename_may_swap_names():
    labels = tuple(Label(index=i, name=name) for i, name in enumerate(tinymodel.LABELS))

    renamed, changes = rename(labels, [("red", "green"), ("green", "red"), ("blue", "blue")])

    assert names(renamed) == ["green", "red", "blue"]
    assert changes == {"red": "green", "green": "red"}


@pytest.mark.parametrize("old", ["crane (n03126707)", "n03126707"])
def test_rename_finds_a_class_of_a_shared_name_by_its_synset(old):
    renamed, changes = rename(CRANES, [(old, "hoist")])

    assert names(renamed) == ["crane", "hoist", "finch"]
    assert changes == {"crane (n03126707)": "hoist"}


@pytest.mark.parametrize(
    ("pairs", "messages"),
    [
        (
            [("finchx", "a"), ("x", "b")],
            ["no class is called 'finchx' (did you mean 'finch'?), 'x'"],
        ),
        ([("crane", "a")], ["write 'crane (n02012849)' or 'crane (n03126707)'"]),
        ([("finch", "a"), ("n01532829", "b")], ["more than one new name for 'finch'"]),
        ([("finch", " ")], ["the new name is empty for 'finch'"]),
        ([("finch", "a" * 201)], ["more than 200 characters for 'finch'"]),
        ([("finch", "a\nb")], ["a line break or another control character for 'finch'"]),
        ([("finch", "\ud800")], ["control character for 'finch'"]),
        ([("finch", "crane")], ["the same name: 'crane' ("]),
        ([("n02012849", "a"), ("n03126707", "a")], ["two classes would have the same name: 'a'"]),
        ([("x", "a"), ("finch", "")], ["no class is called 'x'", "is empty for 'finch'"]),
        ([("finch", "finch")], ["nothing to rename"]),
        ([(f"x{i}", "a") for i in range(12)], ["and 2 more"]),
    ],
)
def test_rename_lists_what_is_wrong(pairs, messages):
    with pytest.raises(RelabellingInvalid) as caught:
        rename(CRANES, pairs)

    for message in messages:
        assert message in str(caught.value)


def test_rename_leaves_classes_that_share_a_name_already():
    renamed, _ = rename(CRANES, [("finch", "bird")])

    assert names(renamed) == ["crane", "crane", "bird"]


def test_rename_takes_names_of_any_script_and_exactly_200_characters():
    renamed, _ = rename(CRANES, [("finch", "アトリ\N{IDEOGRAPHIC SPACE}" + "a" * 196)])

    assert len(renamed[2].name) == 200


def test_relabel_publishes_the_next_version_with_the_same_graph(tmp_path):
    tinymodel.write_version(tmp_path)
    tinymodel.write_version(tmp_path, version=4)

    made = relabel(tmp_path, "tiny", 1, [("red", "rot")], CONFIG)

    assert find_versions(tmp_path) == {"tiny": [1, 4, 5]}
    old, new = (read_version(tmp_path, "tiny", number) for number in (1, 5))
    assert new.manifest == made
    assert new.graph == old.graph
    assert names(made.labels) == ["rot", "green", "blue"]
    assert [example.top5[0].label for example in made.golden] == ["rot", "green", "blue"]
    assert made.created_at > old.manifest.created_at


def test_relabel_changes_nothing_else(tmp_path):
    tinymodel.write_version(tmp_path)

    relabel(tmp_path, "tiny", 1, [("red", "rot")], CONFIG)

    old, new = (read_version(tmp_path, "tiny", number).manifest for number in (1, 2))
    changed = {"version", "created_at", "labels", "golden", "comparison", "files", "provenance"}
    assert new.model_dump(exclude=changed) == old.model_dump(exclude=changed)
    assert {path for path in new.files if new.files[path] != old.files[path]} == {"MODEL_CARD.md"}


def test_relabelled_version_says_where_it_comes_from(tmp_path):
    tinymodel.write_version(tmp_path)

    relabel(tmp_path, "tiny", 1, [("red", "rot")], CONFIG)

    old, new = (read_version(tmp_path, "tiny", number) for number in (1, 2))
    origin = new.manifest.provenance.relabelled_from
    assert origin
    assert (origin.version, origin.manifest_sha256) == (1, old.manifest_sha256)
    comparison = new.manifest.comparison
    assert comparison
    assert (comparison.version, comparison.labels_renamed) == (1, {"red": "rot"})
    card = new.contents["MODEL_CARD.md"].decode()
    assert "'red' is now 'rot'" in card
    assert card.endswith("# tiny\n")


def test_relabel_of_a_migrated_version_does_not_call_itself_migrated(tmp_path):
    origin = {"version": 1, "schema_version": 1, "manifest_sha256": "0" * 64}
    provenance = {"license": "MIT", "weights_source": "none", "migrated_from": origin}
    tinymodel.write_version(tmp_path, provenance=provenance)

    made = relabel(tmp_path, "tiny", 1, [("red", "rot")], CONFIG)

    assert made.provenance.migrated_from is None


def test_relabel_that_fails_verification_leaves_nothing(tmp_path, monkeypatch):
    tinymodel.write_version(tmp_path)

    def fail(*_: object) -> None:
        raise ModelError("made up")

    monkeypatch.setattr(republish, "load_version", fail)

    with pytest.raises(ModelError, match="made up"):
        relabel(tmp_path, "tiny", 1, [("red", "rot")], CONFIG)

    assert [path.name for path in (tmp_path / "tiny").iterdir()] == ["1"]


def test_relabelled_names_survive_json(tmp_path):
    tinymodel.write_version(tmp_path)

    relabel(tmp_path, "tiny", 1, [("red", 'r"ö\\t 🟥')], CONFIG)

    manifest = json.loads((tmp_path / "tiny" / "2" / "manifest.json").read_bytes())
    assert manifest["labels"][0]["name"] == 'r"ö\\t 🟥'
    labels = read_version(tmp_path, "tiny", 2).manifest.labels
    assert compare_labels(labels, labels).renamed == {}
