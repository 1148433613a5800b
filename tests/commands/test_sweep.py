# SPDX-License-Identifier: Apache-2.0
"""`replay sweep`, and `replay run` over its parts."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from replay.fleet import sources
from replay.fleet.sweep import sweep
from tests.commands.running import CAPTURES, call, line
from tests.fleet.test_sweep import OPTIONS
from tests.fleet.test_sweep import traces as traces


def test_the_command(traces: Path, tmp_path: Path) -> None:
    (traces / "bad.parquet").write_bytes(b"PAR1")
    command = [sys.executable, "-m", "replay", "sweep", str(traces), "-o", str(tmp_path / "p"), "-j", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 4 and "not replayed: 1 trace," in done.stderr
    empty = tmp_path / "empty"
    empty.mkdir()
    command[4] = str(empty)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "no trace in" in done.stderr


@pytest.fixture
def swept(traces: Path, tmp_path: Path) -> Path:
    """The folder of a sweep by v2 and by an algorithm of the user's own."""
    folder = tmp_path / "swept"
    done = call("sweep", traces, "-o", folder, "-j", "1", "-a", "v2", "-a", "v2,bundle=4,name=mine")
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith(f"next: replay run {folder} --baseline v2\n")
    return folder


def names(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stderr
    return pl.read_csv(done.stdout.encode())["algorithm"].unique(maintain_order=True).to_list()


def test_what_is_to_be_done_next_can_be_done(traces: Path, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    done = call("sweep", traces, "-o", folder, "-j", "1", "-a", "baseline,v2")
    *_, hint = done.stderr.splitlines()
    assert names(call(*shlex.split(hint)[2:])) == ["baseline", "v2"]
    assert "under v2" in call("run", folder, "--per", "mm", "--format", "table").stdout
    again = call("sweep", traces, "-o", folder, "-j", "1", "-a", "baseline,v2")
    assert again.stderr.splitlines() == ["nothing to do: all 4 parts are there", hint]


def test_parts_without_the_baseline(swept: Path) -> None:
    assert line(call("run", swept)) == (
        f"replay: the parts in '{swept}' have no 'baseline': sweep it too, or name another one: --baseline v2"
    )
    assert names(call("run", swept, "--baseline", "v2")) == ["v2", "mine"]


@pytest.mark.parametrize("named", ["mine", "v2,mine", "v2,bundle=4,name=mine"])
def test_parts_of_an_algorithm_of_the_users_own(named: str, swept: Path) -> None:
    assert names(call("run", swept, "--baseline", "v2", "-a", named))[-1] == "mine"


def test_what_parts_cannot_give(swept: Path) -> None:
    one = [swept, "--baseline", "v2"]
    assert "name one folder of parts, or traces" in line(call("run", *one, CAPTURES / "redis.parquet"), 2)
    for option in ("--together", "--check", "--time", "--partial", "--page-tables=rcu", "--what-if=3"):
        assert "the parts of a sweep are counts already" in line(call("run", *one, option), 2)
    assert "have no 'v1': with -a, name some of 'v2', 'mine'" in line(call("run", *one, "-a", "v1"))
    assert "no algorithm is named" in line(call("run", *one, "-a", ""), 2)


def test_an_empty_name_is_refused(traces: Path, tmp_path: Path) -> None:
    done = call("sweep", traces, "-o", tmp_path / "new", "-a", "v2,,v1")
    assert "'v2,,v1' has an empty value between its commas" in line(done, 2)


def test_an_address_of_no_scheduler_is_told_before_anything_is_made(traces: Path, tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    for address in ("foo", "", "http://host:1", "host:port"):
        done = call("sweep", traces, "-o", tmp_path / "new", "--dask", address)
        said = f"replay: '{address}' is no Dask address: give tcp://HOST:PORT, or 'local'"
        assert line(done, 2) == said
    assert not (tmp_path / "new").exists()


def test_run_compares_the_parts(traces: Path, tmp_path: Path) -> None:
    sweep(sources.find([str(traces)]), tmp_path / "parts", OPTIONS, jobs=1)
    replay_run = [sys.executable, "-m", "replay", "run", "-a", "baseline,v2", "--format", "csv"]
    over_parts, over_traces = (
        subprocess.run([*replay_run, *map(str, given)], capture_output=True, text=True, check=True).stdout
        for given in ([tmp_path / "parts"], sorted(traces.iterdir()))
    )
    assert over_parts == over_traces
    refused = subprocess.run(
        [*replay_run[:4], "-a", "v6.1", str(tmp_path / "parts")], capture_output=True, text=True, check=False
    )
    assert refused.returncode == 1 and "have no 'v6.1'" in refused.stderr
