# SPDX-License-Identifier: Apache-2.0
"""Which process, how much: the ranking, shares in large folios, Markdown, redaction, names for PIDs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import replay
from replay.trace.frame import Trace
from tests.commands.running import call, line, on_terminal

CAPTURES = Path(__file__).parent.parent.parent / "captures"
MANY = CAPTURES / "postgresql-run.parquet"


def counts(trace: Trace, counter: str) -> dict[int, int]:
    rows = replay.run(trace, ["mainline"])
    return dict(rows.select("pid", counter).iter_rows())


def test_one_ranked_table() -> None:
    shown = on_terminal("run", MANY, "--per", "mm", "--sort", "locks", "--top", "3", columns=140)
    locks = counts(replay.read_trace(MANY), "locks")
    ranked = sorted(locks.values(), reverse=True)
    rows = [row.split() for row in shown.splitlines() if "postgres " in row]
    assert [locks[int(row[0])] for row in rows] == ranked[:3]
    assert f"all {len(locks)}" in shown
    assert f"{sum(locks.values()):,}" in shown
    said = " ".join(shown.split())
    assert f"Not shown: {len(locks) - 3} address spaces" in said
    assert "rmap calls: PTE-level rmap removal calls" in said


@pytest.mark.parametrize("columns", [50, 80, 120])
@pytest.mark.parametrize("counter", ["locks", "lruvec_locks", "release_calls", "rmap_calls"])
def test_what_ranks_the_table_is_in_it(counter: str, columns: int) -> None:
    shown = on_terminal("run", MANY, "--per", "mm", "--sort", counter, "--top", "3", columns=columns)
    heading = counter.replace("_", " ")
    said = " ".join(shown.split())
    assert f"under mainline, ranked by {heading} pid process PTEs" in said
    if columns >= 80:
        assert f"PTEs {heading}" in " ".join(shown.splitlines()[2].split())
    most = max(counts(replay.read_trace(MANY), counter).values())
    assert f" {most:,} (" in shown
    left_out = said.partition("too narrow: ")[2].partition(" Counts of ")[0]
    for name in filter(None, left_out.split(", ")):
        assert f"; {name}: " not in said and f". {name}: " not in said


def test_a_ranking_without_its_table_is_refused(tmp_path: Path) -> None:
    for words in (["--top", "3"], ["--per", "mm", "--sort", "locks", "-o", tmp_path / "x.csv"]):
        assert "they change nothing: add --per mm --format table" in line(call("run", MANY, *words), 2)
    assert "cannot sort by 'foo'" in line(
        call("run", MANY, "--per", "mm", "--sort", "foo", "--format", "md"), 2
    )


def test_command_lines_are_shown(tmp_path: Path) -> None:
    trace = replay.read_trace(MANY)
    spaces = tuple(
        dataclasses.replace(space, cmdline=f"postgres: worker {space.pid}")
        for space in trace.meta.address_spaces
    )
    named = dataclasses.replace(trace, meta=dataclasses.replace(trace.meta, address_spaces=spaces))
    path = named.write(tmp_path / "named.parquet")
    assert replay.read_trace(path).meta.address_spaces[3].cmdline == spaces[3].cmdline
    assert "postgres: w" in on_terminal("run", path, "--per", "mm", columns=160)
    assert "postgres: w" in on_terminal("inspect", path, columns=160)
    out = tmp_path / "redacted.parquet"
    assert call("redact", path, out).returncode == 0
    assert "worker" not in repr(replay.read_trace(out).meta)


@pytest.mark.parametrize(
    "arguments",
    [["inspect", MANY], ["run", MANY], ["run", MANY, "--per", "mm"], ["run", MANY, "--what-if", "0,3"]],
    ids=["inspect", "run", "per mm", "what-if"],
)
def test_markdown(arguments: list[str | Path]) -> None:
    done = call(*arguments, "--format", "md")
    assert done.returncode == 0, done.stderr
    tables = [block.splitlines() for block in done.stdout.split("\n\n") if block.startswith("|")]
    assert tables
    for table in tables:
        assert len(table) > 2
        assert {row.count("|") for row in table} == {table[0].count("|")}
        assert set(table[1]) <= set("|-: ")
    assert "--format is 'table' or 'md'" in line(call("inspect", MANY, "--format", "csv"), 2)


# ------------------------------------------------------------------ names for PIDs
