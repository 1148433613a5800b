# SPDX-License-Identifier: Apache-2.0
"""A file of procfs that something covers is refused: its reading gives nothing, or what is not so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from replay.errors import ReplayError
from replay.procfs import files, own_page
from tests.capture.processes import needs_root, program

pytestmark = needs_root()

COVERS = {
    "null": ("/dev/null", "ends before frame"),
    "empty": ("empty", "ends before frame"),
    "cut": ("cut", "ends before frame"),
    "zeros": ("/dev/zero", "says 0x0 of frame"),
}


def covered(folder: Path, name: str, cover: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run replay where something covers a file of /proc."""
    (folder / "empty").touch()
    with Path(f"/proc/{name}").open("rb") as whole:
        (folder / "cut").write_bytes(whole.read(1 << 16))
    script = 'mount --bind "$0" "/proc/$1" && shift && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", script, cover, name, sys.executable, "-m", "replay", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("cover", COVERS)
@pytest.mark.parametrize("name", ["kpageflags", "kpagecount"])
def test_capture_refuses_what_is_covered(name: str, cover: str, tmp_path: Path) -> None:
    file, message = COVERS[cover]
    with program("ready(0)") as (pid, _):
        done = covered(tmp_path, name, file, "capture", str(pid), "-o", "t.parquet")
    assert done.returncode == 1 and not (tmp_path / "t.parquet").exists()
    [line] = done.stderr.splitlines()
    assert line.startswith(f"replay: /proc/{name} {message} ") and "--procfs" in line


@pytest.mark.parametrize("name", ["kpageflags", "kpagecount"])
def test_record_refuses_before_the_command_starts(name: str, tmp_path: Path) -> None:
    done = covered(tmp_path, name, "/dev/null", "record", "-o", "t.parquet", "--", "touch", "started")
    assert done.returncode == 1 and f"/proc/{name} ends before frame" in done.stderr
    assert not (tmp_path / "started").exists() and not (tmp_path / "t.parquet").exists()


@pytest.mark.parametrize("name", ["kpageflags", "kpagecount"])
def test_doctor_tells(name: str, tmp_path: Path) -> None:
    done = covered(tmp_path, name, "/dev/null", "doctor")
    assert done.returncode == 1
    [line] = [line for line in done.stdout.splitlines() if name in line and "->" not in line]
    assert line.startswith("fails") and "ends before frame" in line


def test_memory_cgroups_that_are_covered_are_unknown(tmp_path: Path) -> None:
    with program("ready(0)") as (pid, _):
        done = covered(tmp_path, "kpagecgroup", "/dev/null", "capture", str(pid), "-o", "t.parquet")
    assert done.returncode == 0, done.stderr


def test_a_page_of_our_own_is_what_it_is() -> None:
    own_page.check(files.PROC)
    with own_page.own_frame() as frame:
        assert frame > 0


def test_frames_that_are_hidden_prove_nothing(tmp_path: Path) -> None:
    empty = tmp_path / "kpageflags"
    empty.touch()
    with empty.open("rb") as file:
        own_page.check_kpage(file.fileno(), empty, 0)
        with pytest.raises(ReplayError, match="ends before frame 7"):
            own_page.check_kpage(file.fileno(), empty, 7)
