"""A click group that imports a subcommand only when it is needed."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click


class LazyGroup(click.Group):
    """Imports a command from the module of the same name, or from where `places` says.

    Attributes:
        package: holds the modules.
        table: name of each command -> its text for `--help`. Taking the texts from the commands would
            import all of them.
        places: name of a command -> its module and attribute, such as "pinning.unpin". A command that
            is not there is the attribute of its name in the module of its name.
    """

    def __init__(
        self,
        *args: Any,
        package: str,
        table: Mapping[str, str],
        places: Mapping[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.package = package
        self.table = table
        self.places = places or {}

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in self.table:
            return None
        module, _, attribute = self.places.get(cmd_name, f"{cmd_name}.{cmd_name}").partition(".")
        command: click.Command = getattr(
            importlib.import_module(f"{self.package}.{module}"), attribute
        )
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(self.table.items()))
