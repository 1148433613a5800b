# SPDX-License-Identifier: Apache-2.0
"""`replay calibrate`, and `replay run --time` with what it found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.capture.processes import needs_root
from tests.commands.running import CAPTURES, call, line

REDIS = CAPTURES / "redis.parquet"


def test_without_a_calibration(tmp_path: Path) -> None:
    environment = os.environ | {"XDG_DATA_HOME": str(tmp_path)}
    done = call("run", REDIS, "--time", "-o", tmp_path / "out.csv", env=environment)
    assert "make one with 'replay calibrate'" in line(done)
    assert not (tmp_path / "out.csv").exists()


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
