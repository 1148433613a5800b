# SPDX-License-Identifier: Apache-2.0
"""Settings are put back however a process ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from replay.support.restore import undone
from tests.validate.machine import until


@pytest.mark.parametrize("end", ["return", "exception", signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_undo_happens_however_the_process_ends(tmp_path: Path, end):
    (tmp_path / "switch").write_text("before")
    (tmp_path / "second").write_text("before")
    code = f"""
import os, sys
from pathlib import Path
from replay.support.restore import undone
folder = Path({str(tmp_path)!r})
with undone() as undo:
    undo.write(folder / "switch", "before")
    undo.write(folder / "switch", "undone first")
    (folder / "switch").write_text("changed")
    undo.remove_directory(folder / "instance")
    (folder / "instance").mkdir()
    undo.remove_file(folder / "file")
    (folder / "file").write_text("")
    undo.remove_file(folder / "never made")
    if {end!r} == "exception":
        raise ValueError
    if {end!r} != "return":
        os.kill(os.getpid(), {end if isinstance(end, int) else 0})
"""
    subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    until(lambda: sorted(path.name for path in tmp_path.iterdir()) == ["second", "switch"])
    until(lambda: (tmp_path / "switch").read_text() == "before")


def test_what_cannot_be_undone_is_told(tmp_path: Path):
    with pytest.raises(RuntimeError, match="rmdir"), undone() as undo:
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "file").write_text("")
        undo.remove_directory(tmp_path / "full")
