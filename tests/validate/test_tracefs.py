# SPDX-License-Identifier: Apache-2.0
"""Tracing instances: ours, and those that a dead replay left."""

from __future__ import annotations

import os
import subprocess

from replay.validate import tracefs
from tests.validate.machine import needs_validate


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
