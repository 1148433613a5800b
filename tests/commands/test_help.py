# SPDX-License-Identifier: Apache-2.0
"""Help texts: nothing is cut, options are in groups, examples can be typed."""

from __future__ import annotations

import os
import shlex
from typing import Any

import pytest
import typer
from typer.models import TyperPath

from replay import cli
from replay.commands import help
from tests.commands.running import call

TREE: Any = typer.main.get_command(cli.command_line())
NAMES = TREE.list_commands(None)


def shown(command: str) -> str:
    """The help of a command on a terminal of 80 columns."""
    done = call(*command.split(), "--help", env=os.environ | {"COLUMNS": "80"})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("command", ["", *NAMES])
def test_no_line_is_cut(command: str) -> None:
    usage, *lines = shown(command).splitlines()
    assert usage.startswith("Usage: ")
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if line.endswith("...")]


@pytest.mark.parametrize("command", NAMES)
def test_the_list_says_what_the_help_of_the_command_begins_with(command: str) -> None:
    _, text, _ = cli.COMMANDS[command]
    assert TREE.commands[command].help.splitlines()[0] == text


def test_the_list_is_the_same_without_loading_the_commands() -> None:
    alone = call()
    assert call("--help").stdout == alone.stdout + alone.stderr


@pytest.mark.parametrize("command", NAMES)
def test_every_option_says_what_it_does(command: str) -> None:
    for param in TREE.commands[command].params:
        assert param.help and param.help.rstrip().endswith("."), param.name


@pytest.mark.parametrize("command", NAMES)
def test_a_file_that_cannot_be_read_is_told_by_the_command(command: str) -> None:
    """typer would call it a wrong command line, of status 2."""
    paths = [param for param in TREE.commands[command].params if isinstance(param.type, TyperPath)]
    assert [param.name for param in paths if param.type.readable or param.type.exists] == []


def test_options_are_in_groups() -> None:
    titles = [line[:-1] for line in shown("run").splitlines() if line.endswith(":") and line[0] != " "]
    groups = [help.ALGORITHMS, help.COMPARED, help.WHAT_IF_AND_TIME, help.OUTPUT]
    assert titles == ["Arguments", *groups, "Options"]
    assert "[default: all]" in shown("run")
    said = " ".join(shown("validate").split())
    assert "[default: on for kernels before v6.16, whose exit_mmap() empties" in said


def test_the_smallest_number_is_told_in_words() -> None:
    assert "[default: 20; at least 1]" in " ".join(shown("diff").split())
    assert "[default: 20; at least 0]" in " ".join(shown("inspect").split())
    assert "x>=" not in "".join(map(shown, NAMES))


@pytest.mark.parametrize("command", NAMES)
def test_many_options_are_in_groups(command: str) -> None:
    options = [param for param in TREE.commands[command].params if param.param_type_name == "option"]
    assert {param.rich_help_panel for param in options} <= {*help.ORDER, None}
    if len(options) > 8:
        ungrouped = [param.name for param in options if param.rich_help_panel is None]
        assert len(ungrouped) <= 1, f"name a group for {ungrouped}"


@pytest.mark.parametrize(
    ("command", "groups"),
    [
        ("capture", [help.CAPTURED, help.HOW, help.OUTPUT]),
        ("record", [help.CAPTURED, help.HOW, help.OUTPUT]),
        ("report", [help.WHAT_IF_AND_TIME, help.OUTPUT]),
        ("sweep", [help.ALGORITHMS, help.WORKERS, help.OUTPUT]),
        ("validate", [help.COMPARED, help.OUTPUT]),
    ],
)
def test_groups_of_a_command(command: str, groups: list[str]) -> None:
    titles = [line[:-1] for line in shown(command).splitlines() if line.endswith(":") and line[0] != " "]
    assert titles == ["Arguments", *groups, "Options"]


def test_commands_are_in_groups() -> None:
    text = shown("")
    for title in (help.TAKE, help.COMPARE, help.TRACES, help.CHECK):
        assert f"\n{title}:\n" in text
    assert "\nCommands:\n" not in text


@pytest.mark.parametrize("command", NAMES)
def test_examples_can_be_typed(command: str) -> None:
    lines = [line.strip().removeprefix("sudo ") for line in shown(command).splitlines()]
    examples = [shlex.split(line) for line in lines if line.startswith("replay ")]
    assert examples
    for _, name, *arguments in examples:
        TREE.commands[name].make_context(name, arguments)
