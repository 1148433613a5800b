# SPDX-License-Identifier: Apache-2.0
"""What is read of execs, compared with what the kernel then frees: exec_mmap(), mmput(), exit_mmap()."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pytest

from replay.capture import live
from replay.capture.address_space import Options
from replay.capture.arrow import table
from replay.process import command, exec_gate
from replay.process.follow import Execs, Followed, Missed
from replay.procfs import files
from replay.procfs.source import Tree, by_task, opened
from replay.recording import recorder
from replay.support.restore import undone
from replay.trace.frame import Trace, frame_of
from replay.validate import lru_drain, observe, predict, tracefs
from replay.validate.observe import Observation
from replay.validate.predict import Prediction
from replay.validate.watch import shown_here
from tests.validate.machine import needs_kernel

pytestmark = needs_kernel

BUFFER_BYTES = 4 << 20


@dataclass
class Tracing:
    """A tracing instance of one thread, and what it has shown of each exec."""

    tree: Tree
    instance: tracefs.Instance
    read: dict[int, Prediction] = field(default_factory=dict)
    execs: list[tuple[Prediction, Observation]] = field(default_factory=list)


@pytest.fixture
def tracing() -> Iterator[Tracing]:
    try:
        with exec_gate.opened():
            pass
    except exec_gate.NoGateError as error:
        pytest.skip(str(error))
    with (
        tracefs.mounted() as (root, fd),
        undone([fd]) as undo,
        opened(files.PROC, os.getpid()) as tree,
        tracefs.instance(root, undo, "exec", observe.EVENTS) as instance,
    ):
        if not {"mm_page_free", "exit_mmap"} <= instance.events:
            pytest.skip("the kernel does not show the end of exit_mmap()")
        instance.reserve(BUFFER_BYTES)
        yield Tracing(tree, instance)


def captured(tree: Tree, pid: int, tid: int) -> Trace:
    parts: list[pa.Table] = []
    with by_task(tree, pid, tid) as seen:
        space = live.capture_into(
            seen, pid, 0, lambda rows, owner: parts.append(table(rows, [owner])), Options()
        )
    meta = live.metadata(tree, [(pid, space)], Options(), held="ptrace", mode="exit")
    return Trace(frame_of(pa.concat_tables(parts).unify_dictionaries()), meta, "exec")


def run(argv: list[str], tracing: Tracing) -> Followed:
    """Run a command on one CPU; its execs go to `tracing`."""
    instance = tracing.instance

    def before_exec(pid: int, tid: int, meanwhile: Callable[[], None]) -> Missed | None:
        instance.rest()
        instance.only(tid)
        instance.read(all_of_them=False)
        # a folio in some CPU's batch is not freed by its last user
        lru_drain.drain()
        trace = captured(tracing.tree, pid, tid)
        tracing.read[pid] = predict.predict(trace, predict.algorithm_of(shown_here()))
        instance.record()
        return None

    def decide(pid: int, torn_down: bool) -> None:
        instance.rest()
        prediction = tracing.read.pop(pid)
        if torn_down:
            shown = observe.observe(instance.read(), instance.events, prediction.folios.maps)
            tracing.execs.append((prediction, shown))

    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        with command.held(argv) as started, exec_gate.opened() as gate:
            return recorder.follow_command(started, lambda *_: None, execs=Execs(gate, before_exec, decide))
    finally:
        os.sched_setaffinity(0, allowed)


def assert_agree(prediction: Prediction, shown: Observation) -> None:
    """Each folio that the replay says, and no other, in its order.

    But for those that another process may let go before (fork's copies), and those in some CPU's batch.
    """
    assert shown.finished
    folios = prediction.folios
    unsure = set(folios.pfn[(folios.mapcount > folios.own) | ~folios.lru].tolist())
    sure = [
        [freed for freed in all_freed if freed[0] not in unsure]
        for all_freed in (prediction.freed, shown.freed)
    ]
    assert len(sure[0]) > 10
    assert sure[0] == sure[1]


@pytest.mark.parametrize(
    ("script", "execs"),
    [
        ("for i in 1 2 3 4 5; do /bin/true; done; exec /bin/true", 6),
        ("trap '' USR1; (exec env /bin/true); exit 0", 2),
    ],
)
def test_freed_folios(script: str, execs: int, tracing: Tracing) -> None:
    run(["bash", "-c", script], tracing)
    assert len(tracing.execs) == execs
    for prediction, shown in tracing.execs:
        assert_agree(prediction, shown)


def test_freed_folios_of_a_threaded_exec(tree: str, tracing: Tracing) -> None:
    """Other threads change the memory until the exec ends them."""
    run([tree, "exec-by-thread"], tracing)
    [(prediction, shown)] = tracing.execs
    assert_agree(prediction, shown)
