# SPDX-License-Identifier: Apache-2.0
"""The help of commands: options in groups, commands in groups, defaults in one form.

An option or command names its group as `rich_help_panel`. Options that name none are in the last group.
"""

from __future__ import annotations

import re
from typing import Any, Final

from typer.core import TyperCommand, TyperGroup

from replay.errors import StoppedByUserError

ALGORITHMS: Final = "Algorithms"
CAPTURED: Final = "What is captured"
COMPARED: Final = "What is compared"
KEPT: Final = "What is kept"
HOW: Final = "How it is read"
MEMORY: Final = "What the memory becomes"
WHAT_IF_AND_TIME: Final = "What-if and time"
WORKERS: Final = "Workers"
OUTPUT: Final = "Output"
ORDER: Final = (ALGORITHMS, CAPTURED, COMPARED, KEPT, HOW, MEMORY, WHAT_IF_AND_TIME, WORKERS, OUTPUT)
"""Groups of options, in the order in which a help shows them."""

TAKE: Final = "Make a trace"
COMPARE: Final = "Compare algorithms"
TRACES: Final = "Look at traces and change them"
CHECK: Final = "Check and measure"
"""Groups of commands."""

_RANGE: Final = re.compile(r"([\[ ])x>=(\d+)\]$")
"""What typer calls the smallest number that an option takes."""
_DEFAULT_IN_BRACKETS: Final = re.compile(r"\[default: \((.*)\)(; [^)]*)?\]$")
"""A default that is told in words: typer puts it in brackets of its own."""


def _in_groups(params: list[Any], context: Any) -> dict[str, list[tuple[str, str]]]:
    """Names and texts of the parameters by group: arguments first, options of no group last."""
    groups: dict[str, list[tuple[str, str]]] = {name: [] for name in ("Arguments", *ORDER, "Options")}
    for param in params:
        record = param.get_help_record(context)
        if record is None:
            continue
        name, text = record
        text = _DEFAULT_IN_BRACKETS.sub(r"[default: \1\2]", text)
        record = (name, _RANGE.sub(r"\1at least \2]", text))
        is_argument = param.param_type_name == "argument"
        group = "Arguments" if is_argument else getattr(param, "rich_help_panel", None) or "Options"
        groups[group].append(record)
    return groups


def _write(groups: dict[str, list[tuple[str, str]]], formatter: Any) -> None:
    for title, records in groups.items():
        if records:
            with formatter.section(title):
                formatter.write_dl(records)


class Command(TyperCommand):
    """A command whose help shows its options in groups."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        for param in self.params:
            # a file that cannot be read is no wrong command line: the command itself tells it
            if hasattr(param.type, "readable"):
                param.type.readable = False

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments, then each group of options."""
        _write(_in_groups(self.get_params(ctx), ctx), formatter)


class Commands(TyperGroup):
    """A group of commands whose help shows them in groups."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command. Raises `StoppedByUserError` on Control-C, which typer would end without a word."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise StoppedByUserError("interrupted") from None

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the commands in groups, then the options that stand before a command."""
        groups: dict[str, list[tuple[str, str]]] = {}
        widest = max(map(len, self.list_commands(ctx)))
        for name in self.list_commands(ctx):
            command: Any = self.get_command(ctx, name)
            text = command.get_short_help_str(limit=formatter.width - 6 - widest)
            groups.setdefault(command.rich_help_panel or "Commands", []).append((name.ljust(widest), text))
        _write(groups | _in_groups(self.get_params(ctx), ctx), formatter)
