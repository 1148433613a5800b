# SPDX-License-Identifier: Apache-2.0
"""Call counts on a kernel with kprobe events, and nothing left of them. `kernel_lab --validate` runs this."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from replay.support.restore import append
from replay.validate import calls, compare_calls, exits, probes, tracefs, verdicts, watch
from tests.validate.machine import kprobe_events, needs_kprobes, state, until

pytestmark = needs_kprobes

RUN = "from replay.validate.exits import validate; validate(['sleep', '0.01'])"


def test_call_counts_agree():
    result = exits.validate(["sh", "-c", "true; (ls / >/dev/null)"])
    assert not result.no_calls
    assert result.agrees, verdicts.as_json(result)
    for verdict in result.verdicts:
        assert {count.counter for count in verdict.calls} >= {"rmap_calls", "free_calls", "release_entries"}
        assert verdict.preempted or all(count.agrees for count in verdict.calls), verdicts.as_json(result)


@pytest.mark.parametrize("counter", ["rmap_calls", "release_entries", "swapcache_checks"])
def test_an_altered_count_is_a_disagreement(monkeypatch, counter):
    """What a real kernel did against a prediction that is wrong in one counter."""
    right = compare_calls.compare_calls

    def altered(prediction, observed, *rest):
        return right(prediction, dict(observed) | {counter: observed[counter] + 1}, *rest)

    monkeypatch.setattr(watch, "compare_calls", altered)
    result = exits.validate(["true"])
    assert not result.agrees
    [verdict] = result.verdicts
    wrong = [count for count in verdict.calls if not count.agrees]
    assert [(count.counter, count.cause) for count in wrong] == [(counter, "unexplained")]
    assert verdict.comparison.exact


def test_all_probes_of_this_kernel_can_be_made():
    with tracefs.mounted() as (root, fd), watch.put_back([fd]) as undo:
        wanted = probes.chosen(probes.functions())
        made = probes.make(root, undo, f"replay_{os.getpid()}", wanted, os.uname().machine)
        assert len(made) == len(wanted) == len(ours(root))
        assert calls.shown({name.split("/")[1] for name in made}, True) == tuple(calls.SHOWN_BY)
    with tracefs.mounted() as (root, _):
        assert not ours(root)


def ours(root: Path, pid: int | None = None) -> list[str]:
    return [line for line in kprobe_events(root) if f":replay_{pid or os.getpid()}/" in line]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
@pytest.mark.parametrize("events", [1, 20, "tracing"])
def test_an_interrupted_run_leaves_no_probes(number, events):
    before = state()
    with tracefs.mounted() as (root, _):
        started = subprocess.Popen(
            [sys.executable, "-c", RUN], stderr=subprocess.DEVNULL, cwd=Path(__file__).parents[2]
        )
        instance = root / "instances" / f"replay-{started.pid}-exit"

        def reached() -> bool:
            return instance.exists() if events == "tracing" else len(ours(root, started.pid)) >= events

        until(lambda: reached() or started.poll() is not None, 120, pause=0.001)
        assert started.poll() is None
        started.send_signal(number)
        started.wait(120)
        until(lambda: not ours(root, started.pid), 120)
    until(lambda: state() == before, 120)


def test_probes_of_processes_that_are_no_more_are_removed():
    ended = subprocess.Popen(["true"])
    ended.wait()
    with tracefs.mounted() as (root, _):
        file = root / "kprobe_events"
        for pid in (ended.pid, os.getpid()):
            append(file, f"p:replay_{pid}/exit_mmap_entry exit_mmap")
        try:
            probes.remove_stale(root)
            assert not ours(root, ended.pid)
            assert len(ours(root)) == 1
        finally:
            append(file, f"-:replay_{os.getpid()}/exit_mmap_entry")
