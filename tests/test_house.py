# SPDX-License-Identifier: Apache-2.0
"""The layout: tests mirror modules, names are told apart, imports go one way."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

TESTS: Final = Path(__file__).parent
PACKAGE: Final = TESTS.parent / "replay"

MODULES: Final = sorted(
    path.relative_to(PACKAGE).with_suffix("").as_posix()
    for path in PACKAGE.rglob("*.py")
    if path.stem not in ("__init__", "__main__")
)
"""Every module of the package, as `room/name`."""

TESTED_THROUGH: Final = {
    # whole captures are compared page by page with a literal reading: any fault in these shows there
    "capture/arrow": "recording/test_snapshot",
    "capture/collect": "capture/test_live",
    "capture/extents": "capture/test_cut",
    "capture/folios": "capture/test_cut",
    "capture/loops": "jit/test_compiled",
    "capture/rss": "capture/test_live",
    "capture/run_store": "capture/test_cut",
    "procfs/source": "capture/test_address_space",
    # recordings of real commands: what one of these does wrong, the trace or the command shows
    "process/arguments": "process/test_exec_gate",
    "process/command": "recording/test_recorder",
    "process/fanotify": "process/test_exec_gate",
    "process/follow": "recording/test_recorder",
    "process/nested_tracers": "recording/test_recorder",
    "process/programs": "process/test_exec_gate",
    "process/ptrace": "recording/test_recorder",
    "process/stop": "capture/test_live",
    "recording/encoder": "recording/test_recorder",
    "recording/handover": "process/test_exec_gate",
    # a command is a few lines above the function that does it, and is called in that function's tests
    "commands/options": "commands/test_run",
    "doctor": "commands/test_doctor",
    "errors": "test_cli",
    # one result from several modules
    "cost/calibrate": "cost/test_measure",
    "cost/cases": "cost/test_measure",
    "cost/program": "cost/test_measure",
    "fleet/parts": "fleet/test_sweep",
    "jit/build": "jit/test_cache",
    "jit/load": "jit/test_cache",
    "jit/pread": "procfs/test_pagemap_words",
    "report/catalogue": "commands/test_algorithms",
    "report/charts": "report/test_page",
    "report/folio_orders": "commands/test_whatif",
    "validate/lru_drain": "validate/test_exits",
    "validate/watch": "validate/test_exits",
    "validate/workload_programs": "validate/test_exits",
    "validate/workloads": "validate/test_exits",
    # the reference is what the machine is compared with, on the truth and on generated address spaces
    "teardown/counters": "teardown/test_machine",
    "teardown/extents": "teardown/test_contiguous",
    "teardown/gather": "teardown/test_machine",
    "teardown/large_folios": "teardown/test_machine",
    "teardown/release": "teardown/test_machine",
    "teardown/rmap": "teardown/test_machine",
    "teardown/state": "teardown/test_machine",
    # the one pass is compared as a whole: with the reference, the polars check, and itself in other portions
    "teardown/layout": "teardown/test_one_pass",
    "teardown/pages": "teardown/test_one_pass",
    "teardown/together": "teardown/test_machine",
    "teardown/workspace": "teardown/test_one_pass",
    "trace/columns": "teardown/test_one_pass",
    # the parts of one format
    "trace/frame": "trace/test_file",
    "trace/kpageflags": "trace/test_file",
    "trace/metadata": "trace/test_file",
    "trace/schema": "trace/test_document",
    "trace/write": "trace/test_file",
}
"""Modules without a test file of their own, and the file whose tests run through them."""

TWO_OF_A_NAME: Final = {
    "extents": "rows of a trace in capture, columns of one address space in teardown",
    "files": "procfs reads the files of a process, report writes those of a result",
}
"""Names of modules that two rooms have, and what each means. A command may have the name of what it calls."""

ROOM: Final = re.compile(r"^\| `(\w+)/`", re.MULTILINE)
"""A row of the list of rooms in ARCHITECTURE.md."""

ROOMS: Final = ROOM.findall((TESTS.parent / "ARCHITECTURE.md").read_text())
"""The rooms from the commands down. A room imports only from those below it."""


def mirror(module: str) -> Path:
    """The test file of a module."""
    room, _, name = module.rpartition("/")
    return TESTS / room / f"test_{name}.py"


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_its_tests(module: str) -> None:
    through = TESTED_THROUGH.get(module)
    if through is None:
        assert mirror(module).exists(), f"write {mirror(module).relative_to(TESTS.parent)}"
    else:
        assert not mirror(module).exists(), f"{module} has tests of its own: take it off TESTED_THROUGH"
        assert (TESTS / f"{through}.py").exists(), f"{through}.py is no more"


def test_no_exception_is_left_over() -> None:
    assert TESTED_THROUGH.keys() <= set(MODULES)


def test_two_modules_do_not_share_a_name() -> None:
    rooms: dict[str, list[str]] = {}
    for module in MODULES:
        room, _, name = module.rpartition("/")
        if room != "commands":
            rooms.setdefault(name, []).append(room)
    assert {name: where for name, where in rooms.items() if len(where) > 1}.keys() == TWO_OF_A_NAME.keys()


def imported(path: Path) -> Iterator[str]:
    """The rooms of the package that a file imports from, wherever the import is; not `replay.__version__`."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name != "replay"]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names = (
                [f"replay.{node.attr}"] if node.value.id == "replay" and node.attr != "__version__" else []
            )
        for name in names:
            package, _, rest = name.partition(".")
            room = rest.partition(".")[0]
            if package == "replay":
                found = (PACKAGE / room).is_dir() or (PACKAGE / f"{room}.py").exists()
                yield room if found else "__init__"


def test_every_room_is_on_the_map() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert sorted(ROOMS) == sorted(folders)


def test_imports_go_down() -> None:
    assert ROOMS[0] == "commands"
    downwards = ["__main__", "cli", "commands", "__init__", "doctor", *ROOMS[1:], "errors"]
    height = {room: -level for level, room in enumerate(downwards)}
    for path in sorted(PACKAGE.rglob("*.py")):
        where = path.relative_to(PACKAGE)
        room = where.parts[0] if len(where.parts) > 1 else where.stem
        for other in imported(path):
            assert other == room or height[other] < height[room], f"{where} imports upwards, from {other}"
