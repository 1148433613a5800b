# SPDX-License-Identifier: Apache-2.0
"""A child ends with its parent, also if the parent ended first."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

CHILD = "import os, time; from replay.support.parent import end_with; end_with({}); time.sleep(60)"
PARENT = (
    "import subprocess, sys, os, time; p = subprocess.Popen([sys.executable, '-c', {!r}.format(os.getpid())])"
)
PARENT += "; print(p.pid, flush=True); time.sleep(60)"


def test_it_ends_with_its_parent() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT.format(CHILD)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        child = int(parent.stdout.readline())
        time.sleep(0.3)
        assert Path(f"/proc/{child}").exists()
        parent.send_signal(signal.SIGKILL)
    end = time.monotonic() + 5
    while Path(f"/proc/{child}/exe").exists():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("parent", [1 << 22, os.getppid()])
def test_it_ends_at_once_if_the_parent_is_gone(parent: int) -> None:
    done = subprocess.run([sys.executable, "-c", CHILD.format(parent)], timeout=30, check=False)
    assert done.returncode == 1
