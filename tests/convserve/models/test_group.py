from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from convserve.commands import convserve, models
from convserve.commands.lazy import LazyGroup
from convserve.commands.models import SUBCOMMANDS
from tests import tinymodel


def run(*arguments: str | Path, **environment: str) -> Result:
    given = [str(one) for one in ("models", *arguments)]
    return CliRunner().invoke(convserve, given, env=environment)


def test_help_lists_every_subcommand():
    listed = run("--help").output.partition("Commands:\n")[2].splitlines()

    assert [line.split()[0] for line in listed] == list(SUBCOMMANDS)


@pytest.mark.parametrize("subcommand", SUBCOMMANDS)
def test_help_explains_every_subcommand_and_takes_a_folder(subcommand):
    result = run(subcommand, "--help")

    assert result.output.startswith("Usage:")
    assert "--models-dir" in result.output


@pytest.mark.parametrize(
    ("before", "after", "variable", "used"),
    [("a", None, None, "a"), ("a", "b", None, "b"), ("a", None, "c", "a"), (None, None, "c", "c")],
    ids=["before", "both", "variable", "variable_alone"],
)
def test_the_folder_named_closest_to_the_subcommand_counts(tmp_path, before, after, variable, used):
    for folder in "abc":
        tinymodel.write_version(tmp_path / folder, f"model_{folder}")

    def option(folder: str | None) -> list[str]:
        return ["--models-dir", str(tmp_path / folder)] if folder else []

    environment = {"CONVSERVE_MODELS_DIR": str(tmp_path / variable)} if variable else {}
    result = run(*option(before), "migrate", *option(after), **environment)

    assert result.output == f"current   model_{used}/1: schema version 2\n"


def test_unknown_subcommand_is_refused():
    result = run("delete")

    assert result.exit_code == 2
    assert "No such command 'delete'" in result.stderr


def test_a_module_may_hold_several_commands():
    group = LazyGroup(
        package=models.__name__,
        table={"compare": "Compare two versions.", "relabel": "Rename classes."},
        places={"compare": "diff.diff"},
    )

    found = [group.get_command(click.Context(group), name) for name in ("compare", "relabel")]

    assert [command and command.name for command in found] == ["diff", "relabel"]
