# SPDX-License-Identifier: Apache-2.0
"""`replay sweep`, and `replay run` over its parts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from replay.fleet import sources
from replay.fleet.sweep import sweep
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
