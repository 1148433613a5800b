# SPDX-License-Identifier: Apache-2.0
"""Which process, how much: the ranking, shares in large folios, Markdown, redaction, names for PIDs."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

import replay
from replay.commands.naming import process_number
from replay.errors import UsageError
from replay.trace.frame import Trace
from tests.capture.processes import needs_root
from tests.test_cli import REPLAY, call, line, on_terminal

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
    assert f"{len(locks) - 3} address spaces more" in shown
    assert "rmap calls: PTE-level rmap removal calls" in shown


def test_some_processes() -> None:
    trace = replay.read_trace(MANY)
    pids = [space.pid for space in trace.meta.address_spaces][:2]
    options = [word for pid in pids for word in ("--pid", str(pid))]
    csv = call("run", MANY, *options, "-a", "v2").stdout
    assert pl.read_csv(csv.encode())["pid"].to_list() == pids
    assert "all 2" in on_terminal("run", MANY, "--per", "mm", *options)
    assert "no process 1 in these traces" in line(call("run", MANY, "--pid", "1"), 2)
    assert "cannot sort by 'speed'" in line(
        call("run", MANY, "--per", "mm", "--format", "table", "--sort", "speed"), 2
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


def test_inspect_answers_first() -> None:
    path = CAPTURES / "numpy-32k.parquet"
    trace = replay.read_trace(path)
    mapped = trace.frame.filter(pl.col("kind").cast(str) == "page")
    share = mapped.filter(pl.col("order") > 0)["pages"].sum() / mapped["pages"].sum() * 100
    shown = call("inspect", path).stdout.splitlines()
    assert shown[0] == f"in large folios: {share:.1f} % of 288 MiB (anonymous 97.2 %, file 7.8 %)"
    document = json.loads(call("inspect", path, "--json").stdout)
    assert document["in_large_folios"]["all"][0]["share_pct"] == pytest.approx(share)
    several = json.loads(call("inspect", MANY, "--json").stdout)["processes"]
    assert sum(row["pages"] for row in several) == sum(row["pages"] for row in several if row["pid"])
    assert len(several) == 34


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


def test_redact(tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    assert call("redact", MANY, out).returncode == 0
    assert "exists" in line(call("redact", MANY, out))
    who = ("trace", "pid", "comm")
    before, after = (replay.run(replay.read_trace(path)).drop(who) for path in (MANY, out))
    assert before.equals(after)
    assert "postgres" not in replay.read_trace(out).frame["vma_name"].cast(str).str.join(" ")[0]


def test_as_a_module() -> None:
    done = subprocess.run(
        [REPLAY[0], "-m", "replay", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"replay {replay.__version__}\n"


# ------------------------------------------------------------------ names for PIDs


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """Two processes of one name, longer than the kernel keeps."""
    name = f"sleeper-of-{os.getpid()}-for-replay"
    program = tmp_path / name
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    children = [subprocess.Popen([program, "600"]) for _ in range(2)]
    try:
        yield name, children
    finally:
        for child in children:
            child.kill()
            child.wait()


def test_a_name_for_a_pid(sleeper: tuple[str, list[subprocess.Popen[bytes]]]) -> None:
    name, children = sleeper
    pids = sorted(child.pid for child in children)
    with pytest.raises(
        UsageError, match=f"2 processes are called '{name}': give one PID of {pids[0]}, {pids[1]}"
    ):
        process_number(Path("/proc"), name)
    children[0].kill()
    children[0].wait()
    assert process_number(Path("/proc"), name) == children[1].pid
    assert process_number(Path("/proc"), "123") == 123
    with pytest.raises(UsageError, match="no process is called 'no-such-process'"):
        process_number(Path("/proc"), "no-such-process")


@needs_root()
def test_capture_by_name(sleeper: tuple[str, list[subprocess.Popen[bytes]]], tmp_path: Path) -> None:
    name, children = sleeper
    assert "2 processes are called" in line(call("capture", name, "-o", tmp_path / "x.parquet"), 2)
    children[0].kill()
    children[0].wait()
    done = call("capture", name, "-o", tmp_path / "x.parquet")
    assert done.returncode == 0, done.stderr
    [space] = replay.read_trace(tmp_path / "x.parquet").meta.address_spaces
    assert space.pid == children[1].pid
