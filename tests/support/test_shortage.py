# SPDX-License-Identifier: Apache-2.0
"""Too little memory, or too few threads: one line that says so, and nothing against the trace."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from replay.support import shortage
from tests.capture.processes import needs_root

CAPTURES = Path(__file__).parents[2] / "captures"
RUN = [sys.executable, "-m", "replay", "run"]


def only_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert "damaged" not in done.stderr
    assert "capture it again" not in done.stderr
    return done.stderr


@pytest.mark.parametrize("mebibytes", [100, 300, 500, 700, 900, 1200, 1600])
def test_memory(mebibytes: int) -> None:
    """The loader, pyarrow, polars and NumPy, each in turn, as the limit grows; then it may be enough."""
    limit = mebibytes << 20
    done = subprocess.run(
        [*RUN, CAPTURES / "build-32k.parquet", "-a", "v2"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    if done.returncode == 0:
        assert mebibytes >= 900
        assert done.stdout.count("v2") == 788
        return
    assert f"not enough memory: the limit of this shell, 'ulimit -v {limit >> 10}'" in only_line(done)


def test_memory_is_enough() -> None:
    limit = 32 << 30
    done = subprocess.run(
        [*RUN, CAPTURES / "redis.parquet", "-a", "v2", "--per", "total"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert done.returncode == 0
    assert done.stdout.count("\n") == 2


@needs_root()
@pytest.mark.skipif(not shutil.which("setpriv"), reason="no setpriv")
@pytest.mark.parametrize("tasks", [1, 3, 5])
def test_threads(tasks: int, tmp_path: Path) -> None:
    """Root has as many as it likes; another user may not."""
    read_all = "+dac_override,+dac_read_search"
    user = [
        "setpriv",
        "--reuid",
        "65534",
        "--clear-groups",
        "--inh-caps",
        read_all,
        "--ambient-caps",
        read_all,
    ]
    done = subprocess.run(
        [*user, *RUN, CAPTURES / "redis.parquet", "-a", "v2"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HOME": str(tmp_path)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NPROC, (tasks, tasks)),
    )
    assert f"no more threads can be started: raise the limit of this shell, 'ulimit -u {tasks}'" in only_line(
        done
    )


def test_other_errors_are_other_errors() -> None:
    assert shortage.told(ValueError("a")) is None
    assert shortage.told(OSError(2, "No such file")) is None
