from __future__ import annotations

import csv
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import convserve as package
from convserve import commands
from convserve.commands import COMMANDS, convserve
from convserve.commands.serve import EXIT_NOT_SERVABLE
from service.system.version import package_version
from tests import tinymodel


def run(*arguments: str | Path, **environment: str) -> Result:
    return CliRunner().invoke(convserve, [str(one) for one in arguments], env=environment)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """A red, a corrupt, a missing and a blue picture file."""
    paths = [tmp_path / name for name in ("red.png", "corrupt.png", "missing.png", "blue.png")]
    paths[0].write_bytes(tinymodel.picture("red"))
    paths[1].write_bytes(b"no picture")
    paths[3].write_bytes(tinymodel.picture("blue"))
    return paths


def corrupt(models_dir: Path) -> Path:
    """Corrupts version 1."""
    (models_dir / "tiny" / "1" / "model.onnx").write_bytes(b"corrupt")
    return models_dir


@pytest.fixture
def half_corrupt(tmp_path: Path) -> Path:
    """A repository in which tiny/1 is corrupt, and tiny/2 and other/1 are fine."""
    models_dir = tmp_path / "models"
    for name, version in (("tiny", 1), ("tiny", 2), ("other", 1)):
        tinymodel.write_version(models_dir, name, version)
    return corrupt(models_dir)


def test_main_version_is_printed():
    result = run("--version")

    assert result.output == f"convserve, version {package_version()}\n"


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_main_help_explains_every_command(command):
    result = run(*command.split(), "--help")

    assert (result.exit_code, result.output.startswith("Usage:")) == (0, True)


def test_main_help_lists_every_command():
    modules = {module.name for module in pkgutil.iter_modules(commands.__path__)}

    listed = run("--help").output.partition("Commands:\n")[2].splitlines()

    assert [line.split()[0] for line in listed] == list(COMMANDS)
    assert set(COMMANDS) == modules - {
        "options",
        "lazy",
        "table",
        "compare",
    }  # compare is below loadtest


def test_main_unknown_command_refused():
    result = run("sreve")

    assert (result.exit_code, "No such command 'sreve'" in result.stderr) == (2, True)


# classify


def test_main_classify_prints_predictions_most_probable_first(models_dir, pictures):
    result = run("classify", pictures[0], "--models-dir", models_dir)

    assert result.exit_code == 0
    first, *predictions = result.stdout.splitlines()
    assert first == str(pictures[0])
    assert predictions[0] == "   0.9647  red"
    assert [line.split()[1] for line in predictions] == ["red", "green", "blue"]


def test_main_classify_bad_files_fail_and_the_others_are_classified(models_dir, pictures):
    result = run("classify", *pictures, "--models-dir", models_dir, "--top-k", "1")

    assert result.exit_code == 1
    assert [line.split()[-1] for line in result.stdout.splitlines()] == [
        str(pictures[0]),
        "red",
        str(pictures[3]),
        "blue",
    ]
    corrupt_line, missing_line = result.stderr.splitlines()
    assert corrupt_line.startswith(f"{pictures[1]}: the bytes are not an accepted image format")
    assert missing_line == f"{pictures[2]}: No such file or directory"


def test_main_classify_picks_the_named_model(half_corrupt, pictures):
    result = run("classify", pictures[0], "--models-dir", half_corrupt, "--model", "other")

    assert (result.exit_code, "red" in result.stdout) == (0, True)


def test_main_classify_reads_the_image_files_of_a_folder(models_dir, tmp_path):
    below = tmp_path / "a folder" / "below"
    below.mkdir(parents=True)
    (below / "green.PNG").write_bytes(tinymodel.picture("green"))
    (below.parent / "red.png").write_bytes(tinymodel.picture("red"))
    (below.parent / "notes.txt").write_text("no picture")

    result = run("classify", below.parent, "--models-dir", models_dir, "--top-k", "1")

    assert result.exit_code == 0
    assert [line.split()[-1] for line in result.stdout.splitlines()[1::2]] == ["red", "green"]


def test_main_classify_folder_without_pictures_fails(models_dir, tmp_path):
    result = run("classify", tmp_path, "--models-dir", models_dir)

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"{tmp_path}: no image files in this folder\n"


def test_main_classify_url_says_that_it_is_not_fetched(models_dir):
    result = run("classify", "https://example.org/cat.jpg", "--models-dir", models_dir)

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.endswith(": URLs are not fetched; download the picture first\n")


def test_main_classify_expands_the_home_folder(models_dir, pictures):
    quoted = "~/" + pictures[0].name

    result = run("classify", quoted, "--models-dir", models_dir, HOME=str(pictures[0].parent))

    assert (result.exit_code, result.stdout.splitlines()[0]) == (0, str(pictures[0]))


def test_main_classify_json_is_one_object_per_file(models_dir, pictures):
    result = run("classify", *pictures, "--models-dir", models_dir, "--top-k", "2", "--json")

    red, blue = map(json.loads, result.stdout.splitlines())
    assert (result.exit_code, red["file"], blue["file"]) == (1, str(pictures[0]), str(pictures[3]))
    first, second = red["predictions"]
    assert first == {
        "label": "red",
        "index": 0,
        "synset": None,
        "probability": pytest.approx(0.9647, abs=1e-4),
    }
    assert second["label"] == "green"


def test_main_classify_csv_is_one_row_per_prediction(models_dir, pictures):
    result = run("classify", pictures[0], "--models-dir", models_dir, "--top-k", "2", "--csv")

    header, first, second = csv.reader(result.stdout.splitlines())
    assert header == ["file", "rank", "label", "index", "synset", "probability"]
    assert first[:5] == [str(pictures[0]), "1", "red", "0", ""]
    assert float(first[5]) == pytest.approx(0.9647, abs=1e-4)
    assert second[1:4] == ["2", "green", "1"]


def test_main_classify_reads_the_models_dir_variable(models_dir, pictures):
    result = run("classify", pictures[0], CONVSERVE_MODELS_DIR=str(models_dir))

    assert result.exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "none"], "no model 'none'; there are: tiny"),
        (["--model", "tiny/3"], "no version '3' of tiny; there are: 1, 2"),
        (["--provider", "cuda"], "cuda"),
        (["--models-dir", "nowhere"], "nowhere: no such folder"),
    ],
    ids=["model", "version", "provider", "models_dir"],
)
def test_main_classify_that_cannot_start_says_why(models_dir, pictures, arguments, message):
    result = run("classify", pictures[0], "--models-dir", models_dir, *arguments)

    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments", [[], ["--top-k", "0", "x"], ["--provider", "tpu", "x"]], ids=["none", "k", "tpu"]
)
def test_main_classify_wrong_usage_refused(arguments):
    assert run("classify", *arguments).exit_code == 2


# models, verify


def test_main_models_lists_names_and_versions(half_corrupt):
    result = run("models", "--models-dir", half_corrupt)

    assert result.exit_code == 0
    rows = [line.split()[:3] for line in result.stdout.splitlines()[1:4]]
    assert rows == [["other", "1", "answers"], ["tiny", "1", "not"], ["tiny", "2", "answers"]]


@pytest.mark.parametrize(
    ("name", "found"), [("", "no model versions found"), ("missing", "no such folder")]
)
@pytest.mark.parametrize(
    ("command", "start", "status"),
    [
        (["models"], "Error: ", 1),
        (["verify"], "A start would fail: ", 3),
        (["classify", "x.jpg"], "Error: ", 1),
        (["serve"], "convserve: cannot serve: ", 3),
    ],
    ids=["models", "verify", "classify", "serve"],
)
def test_main_commands_name_the_folder_without_versions(
    tmp_path, command, start, status, name, found
):
    result = run(*command, "--models-dir", tmp_path / name)

    assert (result.exit_code, result.stderr) == (
        status,
        f"{start}{tmp_path / name}: {found}; set --models-dir, or publish a version with "
        "convserve-train\n",
    )


def test_main_verify_reports_good_and_corrupt_versions(half_corrupt):
    result = run("verify", "--models-dir", half_corrupt)

    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["ok", "other/1:"],
        ["FAILED", "tiny/1:"],
        ["ok", "tiny/2:"],
        ["note", "there"],
        ["A", "start"],
    ]
    assert lines[-1] == "A start would serve other/1, tiny/2."
    assert "3 golden examples within" in lines[0]


def test_main_verify_says_that_golden_examples_are_undecided(tmp_path):
    golden = tinymodel.write_version(tmp_path, version=1).model_dump()["golden"]
    undecided = [{**example, "undecided": True} for example in golden]
    tinymodel.write_version(tmp_path, version=2, golden=undecided)

    result = run("verify", "--models-dir", tmp_path, "tiny/2")

    assert result.exit_code == 0
    assert "3 golden examples without a clear first class within" in result.stdout


@pytest.mark.parametrize(
    ("names", "verified"),
    [
        (["other"], ["other/1:"]),
        (["tiny/2"], ["tiny/2:"]),
        (["tiny/2", "other"], ["other/1:", "tiny/2:"]),
    ],
    ids=["name", "version", "both"],
)
def test_main_verify_checks_only_the_named_versions(half_corrupt, names, verified):
    result = run("verify", *names, "--models-dir", half_corrupt)

    assert result.exit_code == 0
    assert [line.split()[1] for line in result.stdout.splitlines()] == verified


@pytest.mark.parametrize("name", ["none", "tiny/3", "other/"])
def test_main_verify_unknown_name_refused(half_corrupt, name):
    result = run("verify", name, "--models-dir", half_corrupt)

    assert (result.exit_code, name in result.stderr) == (1, True)


def test_main_verify_on_missing_provider_fails(models_dir):
    result = run("verify", "--models-dir", models_dir, "--provider", "cuda")

    assert (result.exit_code, result.stdout.count("FAILED")) == (3, 2)
    assert result.stderr.startswith("A start would fail: ")


@pytest.mark.parametrize(("flags", "status"), [([], 3), (["--skip-broken"], 1)])
def test_main_verify_judges_a_repository_as_a_start_does(tmp_path, flags, status):
    for name in ("broken", "tiny"):
        tinymodel.write_version(tmp_path, name)
    (tmp_path / "broken" / "1" / "model.onnx").write_bytes(b"x")
    (tmp_path / "repository.toml").write_text('default = "tiny"')

    result = run("verify", *flags, "--models-dir", tmp_path)

    assert result.exit_code == status
    assert ("A start would serve tiny/1 (default)." in result.stdout) == bool(flags)
    assert ("A start would fail" in result.stderr) != bool(flags)


def test_main_verify_endless_version_fails_at_the_deadline(tmp_path):
    tinymodel.write_version(tmp_path)
    tinymodel.write_version(tmp_path, version=2, graph_file=tinymodel.endless_graph())

    result = run("verify", "--models-dir", tmp_path, CONVSERVE_LOAD_TIMEOUT_S="2")

    assert result.exit_code == 1
    assert "FAILED  tiny/2: loading takes longer than 2 s" in result.stdout
    assert "A start would serve tiny/1 (default)." in result.stdout


def test_main_verify_wrong_repository_file_would_fail_a_start(tmp_path):
    tinymodel.write_version(tmp_path)
    file = tmp_path / "served.toml"
    file.write_text("answer = 1")

    result = run("verify", "--models-dir", tmp_path, "--repository-file", file)

    assert result.exit_code == 3
    assert "served.toml: answer: unknown key" in result.stderr


# serve


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [([], "tiny/1: model.onnx"), (["--provider", "cuda"], "cuda")],
    ids=["corrupt", "provider"],
)
def test_main_serve_that_cannot_start_exits_with_one_line(half_corrupt, arguments, reason):
    (half_corrupt / "repository.toml").write_text("[models.tiny]\nanswer = 1")

    result = run("serve", "--models-dir", half_corrupt, *arguments)

    assert result.exit_code == EXIT_NOT_SERVABLE == 3
    (line,) = result.stderr.splitlines()
    assert line.startswith("convserve: cannot serve: ")
    assert reason in line


@pytest.mark.parametrize(
    ("arguments", "environment", "name"),
    [
        (["--port", "65536"], {}, "--port (CONVSERVE_PORT): must be at most 65535, got 65536"),
        ([], {"CONVSERVE_PORT": "x"}, "CONVSERVE_PORT (--port): must be a whole number, got 'x'"),
        ([], {"CONVSERVE_PROT": "1"}, "CONVSERVE_PROT: no such setting"),
        (["--provider", "tpu"], {}, "tpu"),
    ],
    ids=["flag", "variable", "unknown_variable", "choice"],
)
def test_main_serve_wrong_setting_refused_by_name(arguments, environment, name):
    result = run("serve", *arguments, **environment)

    assert result.exit_code == 2
    assert name in result.stderr


def test_main_serve_prints_effective_settings():
    result = run("serve", "--print-settings", "--port", "1", CONVSERVE_PORT="2", CONVSERVE_LANES="")

    printed = json.loads(result.stdout)
    assert (printed["port"], printed["lanes"]) == (1, None)


def test_main_package_has_the_version():
    assert package.__version__ == package_version()
    assert not hasattr(package, "no_such_name")


# The entry point


def run_python(code: str) -> str:
    return subprocess.run(  # noqa: S603
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_main_entry_point_imports_only_the_standard_library_at_first():
    code = "import sys, convserve.__main__; print(*{n.partition('.')[0] for n in sys.modules})"

    loaded = set(run_python(code).split()) - sys.stdlib_module_names

    assert {name for name in loaded if not name.startswith("_")} == {"convserve", "service"}


def test_main_help_imports_nothing_heavy():
    code = (
        "import sys; from click.testing import CliRunner; from convserve.commands import convserve;"
        "CliRunner().invoke(convserve, ['--help']);"
        "print({'fastapi', 'numpy', 'onnxruntime', 'pydantic', 'PIL'} & sys.modules.keys())"
    )

    assert run_python(code) == "set()\n"
