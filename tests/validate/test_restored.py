# SPDX-License-Identifier: Apache-2.0
"""After any run, also an interrupted one, the machine is as it was before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from replay.errors import ReplayError
from replay.support.restore import undone
from replay.validate import run, tracefs
from tests.validate.machine import instances, needs_validate, state, switches

RUN = "from replay.validate.run import validate; validate(only={only!r})"


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


@needs_validate
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
@pytest.mark.parametrize("only", [["thp-pmd", "order-3"], ["swap"]], ids=lambda only: only[0])
@pytest.mark.parametrize("moment", ["starting", "tracing", "settings changed", "later"])
def test_an_interrupted_run_leaves_nothing_behind(number, only, moment):
    before = state()
    started = subprocess.Popen(
        [sys.executable, "-c", RUN.format(only=only)],
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[2],
    )

    def changed() -> bool:
        what = switches()
        return what["thp"] != before["thp"] or what["swaps"] != before["swaps"]

    if moment == "starting":
        time.sleep(0.3)
    else:
        reached = {"tracing": lambda: len(instances(started.pid)) == 2}.get(moment, changed)
        until(lambda: reached() or started.poll() is not None, 60, pause=0.005)
        time.sleep(0.4 if moment == "later" else 0)
    started.send_signal(number)
    started.wait(60)
    until(lambda: not instances(started.pid))
    until(lambda: state() == before)


@needs_validate
def test_a_run_and_a_failed_run_leave_nothing_behind():
    before = state()
    run.validate(only=["thp-pte", "swap"])
    assert not instances(os.getpid())
    assert state() == before
    with pytest.raises(ReplayError, match="no command"):
        run.validate(["/nonexistent/command"])
    assert not instances(os.getpid())
    assert state() == before


@needs_validate
def test_instances_of_processes_that_are_no_more_are_removed():
    ended = subprocess.Popen(["true"])
    ended.wait()
    with tracefs.mounted() as (root, _):
        stale = root / "instances" / f"replay-{ended.pid}-exit"
        living = root / "instances" / f"replay-{os.getpid()}-mine"
        for path in (stale, living):
            path.mkdir()
        try:
            tracefs.remove_stale(root)
            assert not stale.exists()
            assert living.exists()
        finally:
            living.rmdir()


def until(condition, seconds: float = 60, pause: float = 0.1):
    """Wait for what another process is about to do."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "not as before"
        time.sleep(pause)
