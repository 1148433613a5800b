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
from replay.validate import exits
from tests.validate.machine import instances, needs_validate, state, switches, until

RUN = "from replay.validate.exits import validate; validate(only={only!r})"


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
    exits.validate(only=["thp-pte", "swap"])
    assert not instances(os.getpid())
    assert state() == before
    with pytest.raises(ReplayError, match="no command"):
        exits.validate(["/nonexistent/command"])
    assert not instances(os.getpid())
    assert state() == before
