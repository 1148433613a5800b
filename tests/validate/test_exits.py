# SPDX-License-Identifier: Apache-2.0
"""The replay against this kernel: every built-in workload, commands, and tracing itself."""

from __future__ import annotations

import dataclasses
import json
import mmap
import os
import subprocess
import sys

import pytest

from replay.errors import ReplayError, UsageError
from replay.support.restore import undone
from replay.validate import compare_folios, exits, tracefs, verdicts, watch
from replay.validate.workloads import WORKLOADS
from tests.validate.machine import needs_kernel

pytestmark = needs_kernel


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_built_in_workloads_agree(workload):
    result = exits.validate(only=[workload.name])
    if not result.verdicts:
        pytest.skip(result.notes[workload.name])
    assert result.agrees, verdicts.as_json(result)
    causes = {
        difference.cause for verdict in result.verdicts for difference in verdict.comparison.differences
    }
    # what runs beside this may empty LRU batches between capture and exit
    causes.discard("batch emptied")
    if workload.cause:
        # the swapoff(2) of a test beside this one may give folios back to the parent meanwhile
        also = {"mapped since"} if workload.swap else set()
        assert causes
        assert causes <= {workload.cause} | also
    else:
        assert not causes, verdicts.as_json(result)
    assert not result.missed
    if workload.name in result.notes:
        pytest.skip(result.notes[workload.name])


def test_an_altered_prediction_is_a_disagreement(monkeypatch):
    """Real exits against predictions that are right but for one folio."""
    right = compare_folios.compare

    def altered(prediction, observation, **rest):
        assert right(prediction, observation, **rest).exact
        freed = prediction.freed
        wrong = (freed[1], freed[0], *freed[2:])
        return right(dataclasses.replace(prediction, freed=wrong), observation, **rest)

    monkeypatch.setattr(watch, "compare", altered)
    result = exits.validate(only=["python"])
    assert not result.agrees
    [row] = verdicts.frame(result).to_dicts()
    assert (row["exact"], row["prefix"], row["moved"], row["causes"]) == (False, 0, 1, "unexplained: 1")


def test_a_command_with_children_and_threads():
    code = "import subprocess, threading; subprocess.run(['sh', '-c', 'true; (true)']); " + (
        "threading.Thread(target=print).start()"
    )
    result = exits.validate([sys.executable, "-c", code])
    assert result.status == 0
    assert result.agrees, verdicts.as_json(result)
    assert {verdict.comm for verdict in result.verdicts} >= {"sh"}
    document = json.loads(verdicts.as_json(result))
    assert document["address_spaces"] == len(result.verdicts) == len(document["verdicts"])


def test_threads_that_are_killed_past_their_exit_stop(tree: str, monkeypatch: pytest.MonkeyPatch):
    """They stay zombies until their tracer reaps them, and the process with them."""
    monkeypatch.setattr(watch, "EXIT_SECONDS", 10.0)
    result = exits.validate(["sh", "-c", f"for i in $(seq 40); do {tree} exit-at-once; done"])
    assert result.status == 0
    assert len(result.verdicts) >= 40


def test_the_commands_exit_status_is_kept():
    assert exits.validate(["sh", "-c", "exit 7"]).status == 7
    assert exits.validate(["sh", "-c", "kill -TERM $$"]).status == 128 + 15


def test_where_nothing_is_drained_differences_have_a_cause():
    result = exits.validate(["sh", "-c", "ls / >/dev/null; sed --version >/dev/null"], drain=False)
    assert result.agrees, verdicts.as_json(result)


def test_a_command_of_which_nothing_is_seen_is_an_error(monkeypatch):
    def unreadable(*_):
        raise ReplayError("it changes")

    monkeypatch.setattr(watch, "_read", unreadable)
    with pytest.raises(ReplayError, match="no exit of 'sh' could be compared: it could not be read"):
        exits.validate(["sh", "-c", "true"])


def test_unknown_workloads_are_refused():
    with pytest.raises(UsageError, match="choose from"):
        exits.validate(only=["nonsense"])


def test_lost_events_are_an_error():
    with (
        tracefs.mounted() as (root, fd),
        undone([fd]) as undo,
        tracefs.instance(root, undo, "test", ["kmem/mm_page_free"]) as instance,
    ):
        instance.reserve(4096)
        instance.record()
        for _ in range(3):
            subprocess.run([sys.executable, "-c", "bytearray(1 << 25)"], check=True)
        with pytest.raises(ReplayError, match="lost trace events"):
            instance.read()


def test_events_of_one_thread_only_and_in_order():
    with (
        tracefs.mounted() as (root, fd),
        undone([fd]) as undo,
        tracefs.instance(root, undo, "test", ["kmem/mm_page_free", "no/such_event"]) as instance,
    ):
        assert instance.events == {"mm_page_free"}
        instance.reserve(1 << 22)
        instance.only(os.getpid())
        instance.record()
        subprocess.run(["true"], check=True)
        for _ in range(50):
            # not bytearray(): malloc() may keep what it freed
            with mmap.mmap(-1, 1 << 16) as memory:
                memory.write(bytes(1 << 16))
        instance.rest()
        events = instance.read()
    assert len(events) > 50
    assert {event.pid for event in events if not event.interrupt} == {os.getpid()}
    assert events == sorted(events, key=lambda event: event.time_ns)
