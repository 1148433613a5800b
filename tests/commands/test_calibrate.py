# SPDX-License-Identifier: Apache-2.0
"""`replay calibrate`, and `replay run --time` with what it found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.capture.processes import needs_root
from tests.commands.running import CAPTURES, call, line

REDIS = CAPTURES / "redis.parquet"


def test_without_a_calibration(tmp_path: Path) -> None:
    environment = os.environ | {"XDG_DATA_HOME": str(tmp_path)}
    done = call("run", REDIS, "--time", "-o", tmp_path / "out.csv", env=environment)
    assert "make one with 'replay calibrate'" in line(done)
    assert not (tmp_path / "out.csv").exists()


@needs_root()
def test_what_cannot_be_kept_is_not_measured(tmp_path: Path) -> None:
    began = time.monotonic()
    assert f"there is no folder {tmp_path / 'none'}: make it first" in line(
        call("calibrate", "-o", tmp_path / "none" / "costs.json")
    )
    assert "unknown algorithm 'v3'" in line(call("calibrate", "--algorithm", "v3"), 2)
    assert time.monotonic() - began < 30
    assert not list(tmp_path.iterdir())


WITH_SMALL_PROCESSES = """
from replay import cli
from replay.cost import cases
cases.SHARE_OF_MEMORY = 60
cli.main()
"""


@needs_root()
def test_measured_once(tmp_path: Path) -> None:
    environment = os.environ | {"XDG_DATA_HOME": str(tmp_path)}
    command = [sys.executable, "-c", WITH_SMALL_PROCESSES, "calibrate", "--runs", "1"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    [kept] = tmp_path.rglob("calibration-*.json")
    costs = json.loads(kept.read_text())["costs"]
    assert costs and all(cost >= 0 for cost in costs.values())
    timed = call("run", REDIS, "--time", "-a", "v2", env=environment)
    assert timed.returncode == 0, timed.stderr
    assert "an estimate, not a count" in timed.stderr
