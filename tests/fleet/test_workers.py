# SPDX-License-Identifier: Apache-2.0
"""Workers: a worker that dies costs no other trace."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

import replay
from replay.fleet import sources, workers
from tests.fleet.test_sweep import OPTIONS
from tests.fleet.test_sweep import traces as traces


def killing(path: Path, name: str, options: str) -> tuple[object, int]:
    """A replay that kills its worker: always for the trace t1, once for the others."""
    mark = path.with_suffix(".killed")
    if name == "t1" or not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return replay.run(replay.read_trace(path), "v2"), 1


def test_a_lost_worker_costs_no_other_trace(traces: Path) -> None:
    outcomes = list(workers.local(sources.find([str(traces)]), workers.Task(killing, "{}"), 2))
    assert sorted(outcome.source.name for outcome in outcomes) == ["t0", "t1", "t2", "t3"]
    assert [outcome.source.name for outcome in outcomes if outcome.error] == ["t1"]
    assert "killed 3 times" in next(outcome.error for outcome in outcomes if outcome.error)


def slow(path: Path, name: str, options: str) -> tuple[object, int]:
    """A replay that says who runs it, and takes a while."""
    (path.parent / f"worker-{os.getpid()}").touch()
    time.sleep(0.5)
    return replay.run(replay.read_trace(path), ["baseline", "v2"]), 1


def test_dask_gives_the_serial_result_though_a_worker_dies(traces: Path, tmp_path: Path) -> None:
    pytest.importorskip("distributed")
    found = sources.find([str(traces)])
    task = workers.Task(slow, OPTIONS)
    serial = {outcome.source.uri: outcome.part for outcome in workers.local(found, task, 1)}
    for mark in traces.glob("worker-*"):
        mark.unlink()
    clustered: dict[str, bytes] = {}
    for outcome in workers.dask(found, task, 2, workers.LOCAL):
        if not clustered:
            alive = [int(mark.name[7:]) for mark in traces.glob("worker-*")]
            os.kill(alive[0], signal.SIGKILL)
        clustered[outcome.source.uri] = outcome.part
    assert clustered == serial
