# SPDX-License-Identifier: Apache-2.0
"""What commands show on a terminal, compared with the texts in snapshots/.

REPLAY_SNAPSHOTS=write makes them anew; read what git then shows as changed.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Final

import pytest
from rich.console import Console

import replay
from replay.report import diff, terminal
from replay.report.compare import compare, total
from tests.commands.running import CAPTURES, on_terminal

SNAPSHOTS: Final = Path(__file__).with_name("snapshots")
REWRITE: Final = os.environ.get("REPLAY_SNAPSHOTS") == "write"

NUMPY, LARGE, MANY = (CAPTURES / f"{name}.parquet" for name in ("numpy", "numpy-32k", "pipeline"))

SHOWN: Final[dict[str, tuple[list[object], int]]] = {
    "run-80": (["run", LARGE], 80),
    "run-120": (["run", LARGE], 120),
    "run-per-mm-80": (["run", MANY, "--per", "mm", "-a", "v2,mainline", "--top", "5"], 80),
    "run-per-mm-120": (["run", MANY, "--per", "mm", "-a", "v2,mainline", "--top", "5"], 120),
    "run-per-trace-120": (["run", NUMPY, LARGE, "--per", "trace", "-a", "mainline"], 120),
    "run-what-if-80": (["run", NUMPY, "--what-if", "0,4", "-a", "mainline"], 80),
    "run-what-if-120": (["run", NUMPY, "--what-if", "0,4", "-a", "mainline"], 120),
    "inspect-80": (["inspect", MANY, "--vmas", "5"], 80),
    "inspect-120": (["inspect", MANY, "--vmas", "5"], 120),
    "diff-80": (["diff", NUMPY, LARGE, "-a", "mainline"], 80),
    "diff-120": (["diff", NUMPY, LARGE, "-a", "mainline"], 120),
    "algorithms": (["algorithms"], 80),
    "algorithms-parameters": (["algorithms", "--parameters"], 80),
}
"""A command for each snapshot, and how many columns its terminal has."""


def compared(name: str, shown: str) -> None:
    """Compare a text with its snapshot, or write it."""
    path = SNAPSHOTS / f"{name}.txt"
    text = "".join(f"{line.rstrip()}\n" for line in shown.splitlines())
    if REWRITE:
        path.write_text(text)
    assert text == path.read_text(), "is this wanted? then run again with REPLAY_SNAPSHOTS=write"


@pytest.mark.parametrize("name", SHOWN)
def test_snapshots(name: str) -> None:
    arguments, columns = SHOWN[name]
    compared(name, on_terminal(*arguments, columns=columns))


@pytest.mark.parametrize("columns", [80, 120])
def test_snapshots_of_a_what_if(columns: int, tmp_path: Path) -> None:
    shown = on_terminal("whatif", NUMPY, "--order", "64k", "-o", tmp_path / "new.parquet", columns=columns)
    compared(f"whatif-{columns}", shown)


def test_no_snapshot_is_left_over() -> None:
    names = {*SHOWN, "whatif-80", "whatif-120"}
    assert {path.stem for path in SNAPSHOTS.iterdir()} == names


@pytest.mark.parametrize("width", [*range(30, 141, 7), 80, 400])
def test_cells_of_shown_columns_are_whole(width: int) -> None:
    counts = compare(total(replay.run(replay.read_trace(LARGE))), [])
    sheet = terminal.comparison(counts, "a title that is longer than the table", width)
    console = Console(width=width, height=25, file=io.StringIO(), color_system=None)
    console.print(sheet)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    drawn, _, rest = text.partition("Changes are against")
    assert rest
    table = drawn.partition("Columns left out")[0]
    hidden = " ".join(drawn.split()).partition("too narrow: ")[2]
    assert max(map(len, text.splitlines())) <= width
    for name, column in sheet.cells.items():
        if name.replace("_", " ") not in hidden:
            lines = {line for cell in column for line in cell.split("\n")}
            assert [line for line in lines if line not in table] == [], name


@pytest.mark.parametrize("width", range(60, 130, 7))
def test_a_changed_counter_keeps_the_algorithms_that_name_its_row(width: int) -> None:
    sides = diff.load(NUMPY), diff.load(LARGE)
    *_, table = terminal.difference(*sides, diff.counters(*sides), 3, width)
    console = Console(width=width, height=25, file=io.StringIO(), color_system=None)
    console.print(table)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= width
    [row] = [line for line in text.splitlines() if line.startswith(" deferred_split_calls")]
    assert row.split()[1] == "baseline," and "folio-batch" in text
    hidden = " ".join(text.split()).partition("too narrow: ")[2].partition(" A row is")[0]
    assert not hidden or "change" in hidden.split(", ")


def test_where_nothing_changed_no_table_is_shown() -> None:
    side = diff.load(NUMPY, ["v2"])
    [said] = terminal.difference(side, side, diff.counters(side, side), 20, 80)
    assert str(said) == "Nothing changed from 'numpy' to 'numpy'."
