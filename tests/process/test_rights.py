# SPDX-License-Identifier: Apache-2.0
"""A right is named only where it is missing; a mount that hides files is named as what it is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from replay.process import rights
from tests.capture.processes import needs_root, program

pytestmark = needs_root()

REPLAY = f"{sys.executable} -m replay"


def in_namespace(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script of the shell with mounts of its own."""
    return subprocess.run(
        ["unshare", "-m", "bash", "-c", script], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("command", ["doctor", "capture 1", "record -o t.parquet -- true"])
def test_no_procfs_is_one_line(command: str, tmp_path: Path) -> None:
    done = in_namespace(f"umount -l /proc; {REPLAY} {command}", tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "replay: no procfs at /proc: mount it (mount -t proc proc /proc)"
    assert "Traceback" not in done.stderr


def test_a_mount_of_processes_only_is_named(tmp_path: Path) -> None:
    done = in_namespace(f"mount -t proc -o subset=pid proc /proc && {REPLAY} capture $$", tmp_path)
    if "subset" in done.stderr and "mount:" in done.stderr:
        pytest.skip("this kernel has no subset=pid (before v5.8)")
    assert done.returncode == 1 and "is mounted with subset=pid" in done.stderr


def test_nothing_is_missing_here() -> None:
    assert rights.missing() == []
    with program("ready(0)") as (pid, _):
        assert "replay has CAP_SYS_PTRACE" in rights.why_not_traced(pid)


def test_a_missing_right_is_named(tmp_path: Path) -> None:
    with program("ready(0)") as (pid, _):
        done = subprocess.run(
            [
                "setpriv",
                "--bounding-set=-sys_ptrace",
                "--inh-caps=-sys_ptrace",
                *REPLAY.split(),
                "capture",
                str(pid),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode == 0:
        pytest.skip("the same user may trace it anyway")
    assert "CAP_SYS_PTRACE is missing" in done.stderr
