# SPDX-License-Identifier: Apache-2.0
"""What a terminal, a pipe and a stream that nobody reads get."""

from __future__ import annotations

import dataclasses
import os
import shlex
import subprocess
from pathlib import Path

import polars as pl
import pytest

from tests.commands.running import CAPTURES, REPLAY, on_terminal
from tests.teardown.address_spaces import Piece, trace_of


@pytest.mark.parametrize("columns", [100, 80, 60, 40])
def test_no_number_is_cut(columns: int):
    trace = CAPTURES / "build-32k.parquet"
    shown = on_terminal("run", trace, "-a", "v2", columns=columns)
    assert "1,753,993" in shown
    assert max(map(len, shown.splitlines())) <= columns
    assert ("terminal is too narrow: " in " ".join(shown.split())) == (columns < 80)


def test_names_do_not_steer_the_terminal(tmp_path: Path):
    trace = trace_of([Piece(count=3)], 9)
    name = "a[/b][red]:smile:\x1b[31m"
    spaces = tuple(dataclasses.replace(space, comm=name) for space in trace.meta.address_spaces)
    frame = trace.frame.with_columns(pl.lit(name).cast(pl.Categorical).alias("comm"))
    meta = dataclasses.replace(trace.meta, address_spaces=spaces)
    named = dataclasses.replace(trace, frame=frame, meta=meta)
    path = named.write(tmp_path / "x[bold]y.parquet")
    assert "x[bold]y: 1 address space" in on_terminal("run", path)
    assert "a[/b][red]:smile:\\x1b[31m" in on_terminal("run", path, "--per", "mm", columns=200)
    assert "a[/b][red]:smile:\\x1b[31m (1)" in on_terminal("inspect", path, columns=200)


def test_a_reader_that_stops_reading(path: Path):
    done = subprocess.run(
        f"{' '.join(REPLAY)} run {path} | head -c 10", shell=True, capture_output=True, text=True, check=False
    )
    assert done.stdout == "trace,mm,p"
    assert done.stderr == ""


@pytest.mark.parametrize("stderr", ["closed", "full", "gone"])
def test_notes_that_nobody_can_read_decide_nothing(stderr: str, path: Path, tmp_path: Path) -> None:
    """Their loss changes neither what is written nor the exit status."""
    out = tmp_path / "out.csv"
    command = shlex.join([*REPLAY, "run", str(path), "-o", str(out)])
    if stderr == "gone":
        here, there = os.pipe()
        os.close(here)
        done = subprocess.run(command, shell=True, stderr=there, check=False)
        os.close(there)
    else:
        done = subprocess.run(
            f"{command} 2>{'&-' if stderr == 'closed' else '/dev/full'}", shell=True, check=False
        )
    assert done.returncode == 0 and out.exists()
