import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from convserve.commands.compare import compare_command
from convserve.loadtest.results import write_result
from tests.convserve.loadtest import samples
from tests.convserve.loadtest.compare.test_comparison import failing


def run(*arguments: object) -> Result:
    return CliRunner().invoke(compare_command, [str(one) for one in arguments])


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    results = {
        "good": failing([0.0] * 20),
        "failing": failing([0.1] * 20),
        "busier": failing([0.0] * 20, n=300),
        "several/1": failing([0.0] * 20),
        "several/2": failing([0.0] * 20),
        "invalid": samples.nothing(),
    }
    for name, result in results.items():
        (tmp_path / name).mkdir(parents=True)
        write_result(result, tmp_path / name)
    busier = results["busier"]
    changed = busier.settings.model_copy(update={"rate_per_s": 300.0})
    write_result(busier.model_copy(update={"settings": changed}), tmp_path / "busier")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other.json").write_text('{"schema_version": 2}')
    return tmp_path


@pytest.mark.parametrize(
    ("a", "b", "status"),
    [
        pytest.param("good", "good", 0, id="same"),
        pytest.param("failing", "good", 0, id="better"),
        pytest.param("good", "failing", 1, id="worse"),
        pytest.param("good", "missing", 2, id="no-such-file"),
        pytest.param("good", "empty", 2, id="folder-without-results"),
        pytest.param("good", "other.json", 2, id="no-result"),
        pytest.param("good", "invalid", 3, id="invalid"),
        pytest.param("good", "busier", 3, id="another-rate"),
        pytest.param("good/result.json", "several", 0, id="a-file-and-several-runs"),
    ],
)
def test_exit_status_says_what_was_found(folder, a, b, status):
    assert run(folder / a, folder / b).exit_code == status


def test_table_shows_values_interval_and_verdict(folder):
    lines = run(folder / "good", folder / "failing").output.splitlines()

    errors = next(line for line in lines if line.startswith("errors"))
    assert errors.split()[1:3] == ["0%", "10%"]
    assert errors.endswith("MORE ERRORS")
    assert "points" in errors
    assert max(map(len, lines)) <= 120 or str(folder) in max(lines, key=len)


def test_what_differs_comes_before_the_measures(folder):
    output = run(folder / "good", folder / "busier").output

    assert output.index("prevents a comparison") < output.index("p50")
    assert "60/s, poisson" in output
    assert "300/s, poisson" in output


def test_json_holds_everything(folder):
    outcome = run(folder / "good", folder / "several", "--json")

    document = json.loads(outcome.output)
    assert (document["n_a"], document["n_b"]) == (1, 2)
    assert document["comparable"] is True
    assert document["worse"] is False
    assert {one["name"] for one in document["measures"]} >= {"right answers", "p99", "errors"}


def test_error_names_the_file_and_what_was_expected(folder):
    assert (
        "other.json is not the result of a load test"
        in run(folder / "good", folder / "other.json").output
    )
    assert "no result.json in it" in run(folder / "empty", folder / "good").output
