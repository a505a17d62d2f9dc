"""What is loaded and what answers, at the start and after each kind of change."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from contract.errors import (
    NothingToServe,
    RepositoryFileInvalid,
    RepositoryUnreadable,
    VersionCorrupt,
)
from contract.manifest import Manifest, parse_manifest
from contract.versions import manifest_files, read_version
from service.errors import ModelNotFound, ModelNotReady
from service.models import selection
from service.models.repository import EngineConfig, LoadedVersion, Repository, load_version
from service.models.selection import RepositoryConfig, load_repository, renew
from service.models.snapshot import version_facts
from tests import tinymodel

CPU = EngineConfig("cpu")


class Served:
    """A model repository in a folder, and what a service that reads it serves."""

    def __init__(self, models_dir: Path, **config: Any) -> None:
        self.models_dir = models_dir
        self.config = RepositoryConfig(models_dir, CPU, **config)
        self.repository: Repository | None = None
        self.loads: list[str] = []

    def publish(self, name: str = "tiny", number: int = 1, **changes: Any) -> Manifest:
        return tinymodel.write_version(self.models_dir, name, number, **changes)

    def publish_with_labels(self, number: int, renamed: dict[str, str]) -> None:
        text = self.publish(number=number).model_dump_json()
        for old, new in renamed.items():
            text = text.replace(f'"{old}"', f'"{new}"')
        for path, data in manifest_files(parse_manifest(text)).items():
            (self.models_dir / "tiny" / str(number) / path).write_bytes(data)

    def break_graph(self, name: str, number: int) -> None:
        (self.models_dir / name / str(number) / "model.onnx").write_bytes(b"broken")

    def write(self, text: str) -> None:
        (self.models_dir / "repository.toml").write_text(text)

    def start(self) -> Repository:
        self.repository = load_repository(self.config, self._load)
        return self.repository

    def change(self, *, retry: bool = False) -> Repository:
        assert self.repository is not None
        self.loads.clear()
        self.repository = renew(self.config, self.repository, self._load, retry=retry)
        return self.repository

    def _load(self, models_dir: Path, name: str, number: int, run: EngineConfig) -> LoadedVersion:
        self.loads.append(f"{name}/{number}")
        return load_version(models_dir, name, number, run)


@pytest.fixture
def served(tmp_path: Path) -> Served:
    return Served(tmp_path)


def answers(repository: Repository) -> dict[str, int | None]:
    return {name: one.answer for name, one in repository.decision.models.items()}


# The default model


def test_second_model_does_not_take_over_requests_without_a_name(served):
    served.publish("tiny")
    served.start()
    served.publish("another")

    found = served.change()

    assert found.get().key == ("tiny", 1)
    assert answers(found) == {"another": 1, "tiny": 1}
    assert 'write: default = "tiny"' in found.decision.warnings[0]


def test_start_with_several_models_and_no_file_has_no_default(served):
    served.publish("tiny")
    served.publish("another")

    found = served.start()

    with pytest.raises(ModelNotFound, match="The models are: another, tiny"):
        found.get()
    assert found.get("tiny").key == ("tiny", 1)
    assert found.trouble() is None
    assert "get 404" in found.decision.warnings[0]


def test_default_model_that_is_missing_refused_at_the_start(served):
    served.publish("tiny")
    served.write('default = "another"')

    with pytest.raises(
        NothingToServe, match=r"no model 'another'.*models are: tiny.*--skip-broken"
    ):
        served.start()


def test_default_model_that_is_missing_is_not_ready_with_skip_broken(tmp_path):
    served = Served(tmp_path, skip_broken=True)
    served.publish("tiny")
    served.write('default = "another"')

    found = served.start()

    assert "no model 'another'" in str(found.trouble())
    assert found.trouble("tiny") is None
    with pytest.raises(ModelNotReady, match="'another' cannot answer"):
        found.get()


def test_default_model_deleted_while_serving_is_replaced_by_no_other(served):
    served.publish("tiny")
    served.publish("another")
    served.write('default = "tiny"')
    served.start()
    shutil.rmtree(served.models_dir / "tiny")

    gone = served.change()
    served.publish("tiny")
    back = served.change()

    assert "no model 'tiny'" in str(gone.trouble())
    assert [one.key for one in gone.versions()] == [("another", 1)]
    assert back.get().key == ("tiny", 1)


# Broken versions


def test_broken_newest_version_is_survived_at_the_start(served):
    served.publish(number=1)
    served.publish(number=2)
    served.break_graph("tiny", 2)

    found = served.start()

    assert found.get().key == ("tiny", 1)
    assert list(found.decision.models["tiny"].failed) == [2]
    assert "tiny/2: model.onnx" in found.problems[0]


def test_broken_newest_version_is_survived_while_serving_and_loaded_once(served):
    served.publish(number=1)
    first = served.start().get()
    served.publish(number=2)
    served.break_graph("tiny", 2)

    served.change()
    loads = list(served.loads)
    again = served.change()

    assert (loads, served.loads) == (["tiny/2"], [])
    assert again.get() is first
    assert "tiny/2: model.onnx" in again.problems[0], "still visible"


def test_broken_version_is_loaded_again_on_retry_and_when_its_files_change(served):
    served.publish(number=1)
    served.start()
    graph = (served.models_dir / "tiny" / "1" / "model.onnx").read_bytes()
    served.publish(number=2)
    served.break_graph("tiny", 2)
    served.change()

    served.change(retry=True)
    retried = list(served.loads)
    (served.models_dir / "tiny" / "2" / "model.onnx").write_bytes(graph)
    mended = served.change()

    assert retried == ["tiny/2"]
    assert (mended.get().key, mended.problems) == (("tiny", 2), [])


def test_model_without_a_good_version_refuses_the_start(served):
    served.publish("tiny")
    served.publish("another")
    served.write('default = "tiny"')
    served.break_graph("another", 1)

    with pytest.raises(NothingToServe, match=r"another/1: model\.onnx"):
        served.start()


def test_model_without_a_good_version_is_failed_with_skip_broken(tmp_path):
    served = Served(tmp_path, skip_broken=True)
    served.publish("tiny")
    served.publish("another")
    served.write('default = "tiny"')
    served.break_graph("another", 1)

    found = served.start()

    assert found.trouble() is None
    assert "another/1: model.onnx" in str(found.trouble("another"))
    with pytest.raises(ModelNotReady, match="another/1"):
        found.get("another")


def test_skip_broken_without_a_model_that_can_answer_refuses_the_start(tmp_path):
    served = Served(tmp_path, skip_broken=True)
    served.publish()
    served.break_graph("tiny", 1)

    with pytest.raises(NothingToServe, match="tiny/1"):
        served.start()


def test_unexpected_error_of_one_version_does_not_stop_the_others(served, caplog):
    served.publish(number=1)
    served.publish(number=2)

    def fail(models_dir: Path, name: str, number: int, run: EngineConfig) -> LoadedVersion:
        if number == 2:
            raise RuntimeError("from native code")
        return load_version(models_dir, name, number, run)

    found = load_repository(served.config, fail)

    assert found.get().key == ("tiny", 1)
    assert found.problems == ["tiny/2: RuntimeError"]
    assert "from native code" in caplog.text


def test_loaded_version_whose_files_are_damaged_goes_on_answering(served):
    served.publish()
    first = served.start().get()
    served.break_graph("tiny", 1)

    found = served.change()

    assert found.get() is first
    assert "tiny/1: model.onnx" in found.problems[0]


def test_replaced_version_that_is_broken_leaves_the_loaded_one(served):
    served.publish()
    first = served.start().get()
    shutil.rmtree(served.models_dir / "tiny")
    served.publish(architecture="another")
    served.break_graph("tiny", 1)

    assert served.change().get() is first


# Folders that cannot be read


def test_model_whose_folder_cannot_be_listed_refuses_the_start(served, monkeypatch):
    served.publish("tiny")
    served.publish("another")
    served.write('default = "tiny"')
    forbid(monkeypatch, served.models_dir / "tiny")

    with pytest.raises(NothingToServe, match="tiny: Permission denied"):
        served.start()


def test_model_whose_folder_cannot_be_listed_while_serving_goes_on_answering(served, monkeypatch):
    served.publish("tiny")
    served.publish("another")
    served.write('default = "tiny"')
    first = served.start().get()
    forbid(monkeypatch, served.models_dir / "tiny")

    found = served.change()

    assert found.get() is first
    assert "tiny" in found.problems[0]


def test_repository_that_disappears_while_serving_changes_nothing(served):
    served.publish()
    first = served.start().get()
    shutil.rmtree(served.models_dir)

    found = served.change()

    assert found.get() is first
    assert "No such file" in found.problems[0]


@pytest.mark.parametrize("exists", [True, False])
def test_start_without_versions_refused_by_folder(tmp_path, exists):
    folder = tmp_path if exists else tmp_path / "missing"
    expected = NothingToServe if exists else RepositoryUnreadable

    with pytest.raises(expected, match=f"^{folder}: no .*; set --models-dir"):
        load_repository(RepositoryConfig(folder, CPU))


def forbid(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Makes a folder unreadable, also for the superuser."""
    iterdir = Path.iterdir

    def denied(path: Path) -> Any:
        if path == folder:
            raise PermissionError(13, "Permission denied")
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", denied)

    read, facts = read_version, version_facts

    def read_unless_denied(models_dir: Path, name: str, number: int) -> Any:
        if models_dir / name == folder:
            raise VersionCorrupt(f"{name}/{number}: Permission denied")
        return read(models_dir, name, number)

    def facts_unless_denied(models_dir: Path, name: str, number: int) -> Any:
        denied = models_dir / name == folder
        return frozenset({("", (-1, 13))}) if denied else facts(models_dir, name, number)

    monkeypatch.setattr(selection, "read_version", read_unless_denied)
    monkeypatch.setattr(selection, "version_facts", facts_unless_denied)


# repository.toml


def test_pinned_version_answers_though_newer_ones_come(served):
    served.publish(number=1)
    served.write("[models.tiny]\nanswer = 1")
    served.start()
    served.publish(number=2)

    assert served.change().get().key == ("tiny", 1)


def test_alias_is_loaded_and_found_by_name(served):
    served.publish(number=1)
    served.publish(number=2)
    served.write("[models.tiny]\naliases = { stable = 1 }")

    found = served.start()

    assert (found.get("tiny").key, found.get("tiny", "stable").key) == (("tiny", 2), ("tiny", 1))
    with pytest.raises(ModelNotFound, match="loaded versions are: 1, 2, stable"):
        found.get("tiny", "canary")


def test_version_that_lacks_a_label_is_held_back_at_the_start_and_while_serving(served):
    served.publish(number=1)
    running = served.start()
    served.publish_with_labels(2, {"red": "crimson"})

    running = served.change()
    restarted = load_repository(served.config)

    assert running.get().key == restarted.get().key == ("tiny", 1)
    assert running.held == restarted.held
    assert "lacks 1 of the 3 labels of version 1: red" in running.held[0]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[models.tiny]\nanswr = 1", "answr: unknown key"),
        ("[models.tiny", "not TOML"),
        ("[models.tiny]\nanswer = 9", "there is no version 9"),
        ("[models.tiny]\nload = [1, 9]", "there is no version 9"),
        ('default = "tiny"\ndefault = "other"', "not TOML"),
        ('default = "other"', "there is no model 'other'"),
        (None, "has disappeared"),
    ],
)
def test_file_that_cannot_be_applied_leaves_what_is_served(served, text, problem):
    served.publish(number=1)
    served.publish(number=2)
    good = "[models.tiny]\nanswer = 1"
    served.write(good)
    served.start()
    if text is None:
        (served.models_dir / "repository.toml").unlink()
    else:
        served.write(text)

    refused = served.change()
    served.write("[models.tiny]\nanswer = 2")
    applied = served.change()

    assert refused.get().key == ("tiny", 1)
    assert problem in refused.problems[0]
    assert (applied.get().key, applied.problems) == (("tiny", 2), [])


def test_reason_with_a_file_name_that_is_no_text_can_be_sent(served):
    served.publish(number=1)
    served.publish(number=2)
    (served.models_dir / "tiny" / "2" / os.fsdecode(b"\xff")).touch()

    (problem,) = served.start().problems

    assert "udcff is not listed in the manifest" in problem
    assert problem.encode()


def test_invalid_file_refuses_the_start(served):
    served.publish()
    served.write("answer = 3")

    with pytest.raises(RepositoryFileInvalid, match=r"repository\.toml: answer: unknown key"):
        served.start()


def test_pinned_version_that_is_broken_leaves_the_one_before(served):
    served.publish(number=1)
    served.write("[models.tiny]\nanswer = 1")
    first = served.start().get()
    served.publish(number=2)
    served.break_graph("tiny", 2)
    served.write("[models.tiny]\nanswer = 2")

    found = served.change()

    assert found.get() is first
    assert "tiny/2" in str(found.decision.models["tiny"].trouble)
    assert found.trouble() is None, "it can still answer"


def test_pinned_version_that_is_broken_takes_no_other_version_away(served):
    for number in (1, 2):
        served.publish(number=number)
    policy = "[models.tiny]\naliases = {{ stable = 2 }}\nanswer = {}"
    served.write(policy.format(1))
    served.start()
    served.publish(number=3)
    served.break_graph("tiny", 3)
    served.write(policy.format(3))

    found = served.change()

    assert found.get().key == ("tiny", 1)
    assert found.get("tiny", "stable").key == found.get("tiny", 2).key == ("tiny", 2)


def test_alias_of_a_version_that_is_broken_goes_on_meaning_the_one_before(served):
    for number in (1, 2):
        served.publish(number=number)
    served.write("[models.tiny]\naliases = { stable = 1 }")
    served.start()
    served.publish(number=3)
    served.break_graph("tiny", 3)
    served.write("[models.tiny]\naliases = { stable = 3 }")

    found = served.change()
    served.write("")
    removed = served.change()

    assert (found.get().key, found.get("tiny", "stable").key) == (("tiny", 2), ("tiny", 1))
    assert any("tiny/3" in problem for problem in found.problems)
    with pytest.raises(ModelNotFound):
        removed.get("tiny", "stable")


def test_default_that_cannot_answer_leaves_the_one_before(served):
    served.publish("another")
    served.publish("tiny")
    served.break_graph("another", 1)
    served.config = replace(served.config, skip_broken=True)
    served.write('default = "tiny"')
    served.start()
    served.write('default = "another"')

    kept = served.change()
    served.publish("another", 2)
    moved = served.change()

    assert kept.get().key == ("tiny", 1)
    assert "another cannot answer, so tiny stays the default" in " ".join(kept.problems)
    assert moved.get().key == ("another", 2)


def test_version_that_was_missing_at_the_start_stops_no_later_change(served):
    for number in (1, 2):
        served.publish(number=number)
    served.write("[models.tiny]\naliases = { old = 9 }")
    served.start()
    served.write("[models.tiny]\naliases = { old = 9 }\nanswer = 1")

    assert served.change().get().key == ("tiny", 1)


def test_unloaded_model_is_not_ready_and_no_problem(served):
    served.publish("tiny")
    served.publish("another")
    served.write('default = "tiny"\n[models.another]\nload = "none"')

    found = served.start()

    assert (found.problems, list(found.models)) == ([], ["tiny"])
    with pytest.raises(ModelNotReady, match='load = "none"'):
        found.get("another")


def test_repository_file_elsewhere_is_applied(tmp_path):
    models, file = tmp_path / "models", tmp_path / "served.toml"
    file.write_text("[models.tiny]\nanswer = 1")
    served = Served(models, repository_file=file)
    for number in (1, 2):
        served.publish(number=number)
    served.write("[models.tiny]\nanswer = 2")

    assert served.start().get().key == ("tiny", 1)


def test_models_dir_in_a_folder_that_cannot_be_entered_refused_at_the_start(tmp_path, monkeypatch):
    def refuse(path: object) -> object:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("contract.repository.listing.os.scandir", refuse)
    monkeypatch.setattr(Path, "exists", refuse)

    with pytest.raises(RepositoryUnreadable, match="Permission denied"):
        Served(tmp_path).start()


def test_configured_repository_file_that_is_missing_refused_at_the_start(tmp_path):
    served = Served(tmp_path, repository_file=tmp_path / "typo.toml")
    served.publish()

    with pytest.raises(RepositoryFileInvalid, match=r"typo\.toml: .* is missing"):
        served.start()


def test_unchanged_versions_are_the_same_objects(served):
    served.publish(number=1)
    served.write('[models.tiny]\nload = "all"')
    before = served.start().versions()
    served.publish(number=2)

    after = served.change().versions()

    assert after[0] is before[0]
    assert served.loads == ["tiny/2"]


def test_restart_comes_up_as_it_went_down(served):
    served.publish(number=1)
    served.start()
    served.publish(number=2)
    served.break_graph("tiny", 2)
    served.publish(number=3)
    served.write("[models.tiny]\naliases = { stable = 1 }\nload = { newest = 2 }")

    running, restarted = served.change(), load_repository(served.config)

    assert running.decision == restarted.decision
    assert [v.key for v in running.versions()] == [v.key for v in restarted.versions()]
