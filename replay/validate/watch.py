# SPDX-License-Identifier: Apache-2.0
"""Each exit of a command: captured, released under the kernel's tracepoints, compared with the replay."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from replay.capture import address_space, live, loops
from replay.capture.address_space import Options, Space
from replay.capture.arrow import table
from replay.capture.extents import Extents, Owner
from replay.errors import ProcessGoneError, ReplayError
from replay.process import command
from replay.process.follow import Missed
from replay.procfs import files, kernel
from replay.procfs.files import Status, Vma
from replay.procfs.source import Tree, by_task, opened
from replay.recording import recorder
from replay.support.restore import Undo
from replay.teardown.algorithms import Algorithm
from replay.trace.frame import Trace, frame_of
from replay.trace.kpageflags import KPF_ANON, KPF_SWAPCACHE, bit
from replay.trace.write import ARROW_SCHEMA
from replay.validate import calls, later_frees, lru_drain, observe, predict, probes, tracefs
from replay.validate.compare_calls import CallCount, Doubts, compare_calls
from replay.validate.compare_folios import Comparison, Frame, compare, stayed, unpredicted
from replay.validate.observe import Observation
from replay.validate.predict import Prediction
from replay.validate.tracefs import Event
from replay.validate.workload_settings import put_back

EXIT_SECONDS: Final = 60.0
"""How long a process may take from its exit stop to its end; the teardown of terabytes takes a minute."""

REAP_MILLISECONDS: Final = 10

EVIDENCE_BYTES: Final = 64 << 20
"""Buffers, of all CPUs together, for events of all tasks between an exit and the look at its differences."""

DECIDING: Final = bit(KPF_ANON) | bit(KPF_SWAPCACHE)
"""Flags that the replay depends on."""

COMPARED: Final = (
    "vpn",
    "pages",
    "kind",
    "pfn",
    "mapcount",
    "own",
    "dirty",
    "folio",
    "order",
    "folio_mapped",
    "folio_mapcount",
)
"""Columns that the replay depends on."""


@dataclass(frozen=True)
class Verdict:
    """How the replay of one exit compares with what the kernel did.

    orders: folios that the page tables mapped, by order. page_tables: `gather` or `rcu`. not_on_lru:
    folios that were not on the LRU at the exit stop. changed: folios that differed between two captures of
    the stopped process. batches: batches of frees that the kernel showed. preempted: times that the thread
    lost its CPU on the way. duration_us: from the first free to the end of exit_mmap(). calls: the counters
    that could be compared, none if the calls are not observed here, or exit_mmap() ran elsewhere.
    """

    workload: str
    pid: int
    comm: str
    orders: dict[int, int]
    page_tables: str
    not_on_lru: int
    changed: int
    batches: int
    preempted: int
    duration_us: float
    comparison: Comparison
    calls: tuple[CallCount, ...] = ()

    @property
    def explained(self) -> bool:
        """Whether everything is as predicted, apart from differences with a known cause."""
        return self.comparison.explained and all(count.explained for count in self.calls)

    @property
    def mapped(self) -> int:
        """Folios that the page tables mapped."""
        return sum(self.orders.values())


@dataclass(frozen=True)
class Watched:
    """A finished command. status: as of `Recorded`. missed: address spaces not compared, by cause."""

    status: int
    verdicts: tuple[Verdict, ...]
    missed: dict[Missed, int]


@dataclass
class Watcher:
    """What watching needs. instance: records the exiting thread; others: the frees of all tasks, as evidence.

    algorithm: what this kernel does. in_gather: whether page-table pages go through the gather. counters:
    those whose calls the instance records; no_calls: why there are none.
    """

    tree: Tree
    instance: tracefs.Instance
    others: tracefs.Instance
    algorithm: Algorithm
    in_gather: bool
    counters: tuple[str, ...]
    no_calls: str


@contextlib.contextmanager
def watcher(chosen: Algorithm | None = None) -> Iterator[Watcher]:
    """Set tracing up; undo it when the block ends, or when this process ends.

    chosen: the algorithm to predict with; None finds out what this kernel does. Raises `ReplayError` if there
    is no tracefs, the kernel lacks the tracepoints, or rights are missing.
    """
    if not files.in_first_pid_namespace():
        raise ReplayError("in a PID namespace the kernel's events name other PIDs: run validate on the host")
    with (
        tracefs.mounted() as (root, fd),
        put_back([fd]) as undo,
        opened(files.PROC, os.getpid()) as tree,
    ):
        loops.prepare()
        tracefs.remove_stale(root)
        probes.remove_stale(root)
        machine = kernel.architecture(files.PROC, live=True)
        made, no_calls = _probed(root, undo, machine)
        with (
            tracefs.instance(root, undo, "exit", (*observe.EVENTS, *made)) as instance,
            tracefs.instance(root, undo, "others", observe.EVIDENCE, overwrite=True) as others,
        ):
            if "mm_page_free" not in instance.events:
                raise ReplayError(
                    "this kernel has no tracepoint kmem:mm_page_free: validate needs CONFIG_TRACEPOINTS and "
                    "CONFIG_EVENT_TRACING"
                )
            others.reserve(EVIDENCE_BYTES // (os.cpu_count() or 1))
            algorithm = chosen or predict.algorithm_of(shown_here())
            in_gather = algorithm.gathers_tables(machine)
            counters = calls.shown(instance.events, machine in probes.REGISTERS)
            if not in_gather:
                counters = tuple(name for name in counters if name != "page_tables")
            if not counters and not no_calls:
                no_calls = "this kernel does not let exit_mmap() or tlb_finish_mmu() be probed"
            yield Watcher(tree, instance, others, algorithm, in_gather, counters, no_calls)


def shown_here() -> frozenset[str]:
    """Those functions and lines of the configuration of this kernel that tell kernels apart."""
    names = predict.shown_names()
    return probes.present(names) | names.intersection(files.kernel_config(files.PROC).splitlines())


def _probed(root: Path, undo: Undo, machine: str) -> tuple[list[str], str]:
    """Make kprobe events -> their names as "system/name", or why there are none."""
    if not probes.available(root):
        return [], "this kernel has no kprobe events (CONFIG_KPROBE_EVENTS)"
    wanted = probes.chosen(probes.functions())
    try:
        return probes.make(root, undo, f"replay_{os.getpid()}", wanted, machine), ""
    except ReplayError as error:
        return [], str(error)


def watch(
    watching: Watcher,
    argv: Sequence[str],
    workload: str,
    *,
    ours: bool = False,
    drain: bool = False,
    progress: Callable[[Verdict], None] | None = None,
) -> Watched:
    """Run a command and compare each exit among its processes with the replay.

    ours: the command is a built-in workload. It then stays on one CPU, so that its pages wait in LRU batches
    of that CPU only, and a signal ends the watching instead of being passed on. drain: empty the LRU batches
    of all CPUs before each exit.

    Raises `ReplayError` if the command cannot be started or traced, or if the kernel lost trace events.
    """
    verdicts: list[Verdict] = []
    stopped: dict[int, tuple[_Stopped, Callable[[], None]]] = {}

    def at_exit(pid: int, tid: int, meanwhile: Callable[[], None]) -> Missed | None:
        forget()
        found = _stop(watching, pid, tid, drain)
        if isinstance(found, Missed):
            return found
        stopped[pid] = found, meanwhile
        return None

    def forget() -> None:
        """Drop a process that was killed at its exit stop and was not heard of again."""
        while stopped:
            os.close(stopped.popitem()[1][0].pidfd)

    def after_exit(pid: int, tid: int) -> None:
        found, meanwhile = stopped.pop(pid)
        try:
            _await_end(found.pidfd, pid, meanwhile)
        finally:
            os.close(found.pidfd)
            watching.instance.rest()
        verdict = _judge(watching, workload, pid, found)
        verdicts.append(verdict)
        if progress:
            progress(verdict)

    with contextlib.ExitStack() as stack:
        stack.callback(forget)
        if ours:
            with _on_one_cpu():
                started = stack.enter_context(command.held(argv))
            stack.push(lambda kind, error, trace: _kill(started.pid) if error else None)
        else:
            started = stack.enter_context(command.held(argv))
            stack.enter_context(command.signals_passed(started))
        followed = recorder.follow_command(started, at_exit, after_exit)
    status = os.waitstatus_to_exitcode(followed.root_status or 0)
    return Watched(status if status >= 0 else 128 - status, tuple(verdicts), dict(followed.missed))


@contextlib.contextmanager
def _on_one_cpu() -> Iterator[None]:
    """Keep this thread, and processes that it forks, on one CPU."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


class _Reading(NamedTuple):
    """An address space as it was read. To make a trace of it takes longer than the process can be held."""

    captured: Space
    rows: list[tuple[Extents, Sequence[Vma], Status]]


@dataclass(frozen=True)
class _Stopped:
    """A process at its exit stop.

    before: its address space; last: the same, read again right before the process went on. captured_ns: when
    the last reading began, by the clock of the events.
    """

    before: Trace
    last: _Reading
    captured_ns: int
    pidfd: int


def _stop(watching: Watcher, pid: int, tid: int, drain: bool) -> _Stopped | Missed:
    """Capture a process at its exit stop twice, and prepare to observe what it does next."""
    try:
        first = _trace(watching.tree, pid, _read(watching.tree, pid, tid))
    except (ProcessGoneError, ProcessLookupError):
        return Missed.KILLED
    except ReplayError:
        return Missed.UNREADABLE
    entries = int(first.frame["pages"].sum()) if watching.counters else 0
    watching.instance.reserve(observe.buffer_bytes(_folios_at_most(first.frame), entries))
    watching.instance.rest()
    watching.instance.only(tid)
    watching.instance.read(all_of_them=False)
    if drain:
        lru_drain.drain()
    watching.instance.record()
    watching.others.record()
    # As late as can be, and nothing done with it: other processes go on sharing memory with this one, or
    # cease to, and each page fault, our own too, may empty an LRU batch in which its folios wait.
    captured_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    try:
        return _Stopped(first, _read(watching.tree, pid, tid), captured_ns, os.pidfd_open(pid))
    except (ProcessGoneError, ProcessLookupError):
        return Missed.KILLED
    except ReplayError:
        return Missed.UNREADABLE


def _read(tree: Tree, pid: int, tid: int) -> _Reading:
    rows: list[tuple[Extents, Sequence[Vma], Status]] = []
    with by_task(tree, pid, tid) as seen:
        captured = address_space.capture_space(seen, pid, lambda *part: rows.append(part), Options())
    return _Reading(captured, rows)


def _trace(tree: Tree, pid: int, reading: _Reading) -> Trace:
    parts = [table(extents, [Owner(0, pid, status.name, vmas)]) for extents, vmas, status in reading.rows]
    meta = live.metadata(tree, [(pid, reading.captured)], Options(), held="ptrace", mode="exit")
    rows = pa.concat_tables(parts).unify_dictionaries() if parts else ARROW_SCHEMA.empty_table()
    return Trace(frame_of(rows), meta, f"{reading.captured.status.name}-{pid}")


def _folios_at_most(frame: pl.DataFrame) -> int:
    """The most folios that may be freed. Neighbours of order 0 share an extent."""
    return int(frame.select(pl.when(pl.col("order") == 0).then("pages").otherwise(1).sum()).item())


def _changed(first: pl.DataFrame, second: pl.DataFrame) -> frozenset[int]:
    """Frames, or heads of folios, that two captures describe differently."""

    def deciding(frame: pl.DataFrame) -> pl.DataFrame:
        return frame.select(*COMPARED, pl.col("kpageflags") & DECIDING)

    one, other = deciding(first), deciding(second)
    if one.equals(other):
        return frozenset()
    rows = pl.concat(
        [one.join(other, on=one.columns, how="anti"), other.join(one, on=one.columns, how="anti")]
    )
    small = rows.filter(pl.col("order") == 0)
    frames = small.select(pl.int_ranges("pfn", pl.col("pfn") + pl.col("pages"))).explode("pfn")
    large = rows.filter(pl.col("order") > 0)
    return frozenset(frames["pfn"].to_list()) | frozenset(large["folio"].to_list())


def _await_end(pidfd: int, pid: int, meanwhile: Callable[[], None]) -> None:
    """Wait until all tasks of a process have ended; exit_mm() comes before that.

    meanwhile: called from time to time, because a thread that was killed past its exit stop must be reaped.
    """
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    deadline = time.monotonic() + EXIT_SECONDS
    while not poll.poll(REAP_MILLISECONDS):
        if time.monotonic() > deadline:
            raise ReplayError(
                f"process {pid} has not ended {EXIT_SECONDS:.0f} s after its exit stop: "
                "something holds it in the kernel, see /proc/PID/stack"
            )
        meanwhile()


def _judge(watching: Watcher, workload: str, pid: int, found: _Stopped) -> Verdict:
    trace = _trace(watching.tree, pid, found.last)
    changed = _changed(found.before.frame, trace.frame)
    prediction = predict.predict(trace, watching.algorithm)
    events = watching.instance.read()
    observation = observe.observe(events, watching.instance.events, prediction.folios.maps)
    remaining = stayed(prediction.freed, observation.freed)
    surprising = unpredicted(prediction.freed, observation.freed)
    after, left = _afterwards(watching, remaining, surprising, found.captured_ns, observation)
    comparison = compare(prediction, observation, after=after, changed=changed, left=left)
    orders = np.unique(prediction.folios.order, return_counts=True)
    return Verdict(
        workload=workload,
        pid=pid,
        comm=trace.meta.address_spaces[0].comm,
        orders=dict(zip(orders[0].tolist(), orders[1].tolist(), strict=True)),
        page_tables="gather" if watching.in_gather else "rcu",
        not_on_lru=int(np.count_nonzero(~prediction.folios.lru)),
        changed=len(changed),
        batches=len(observation.batch_ends),
        preempted=observation.preempted,
        duration_us=(observation.ended_ns - observation.began_ns) / 1000,
        comparison=comparison,
        calls=_calls(watching, found.before, trace, events, prediction, comparison),
    )


def _calls(
    watching: Watcher,
    earlier: Trace,
    trace: Trace,
    events: Sequence[Event],
    prediction: Prediction,
    freed: Comparison,
) -> tuple[CallCount, ...]:
    """The counters that the probes show, compared."""
    inside = calls.window(events) if watching.counters else []
    if not inside:
        return ()
    made = calls.counts(calls.of_teardown(inside))
    observed = {name: made[name] for name in watching.counters}
    doubts = Doubts(
        before=lambda: predict.predict(earlier, watching.algorithm).counters,
        dirty=lambda: predict.dirty_counters(trace, watching.algorithm),
    )
    return compare_calls(prediction, observed, observe.preemptions(inside, inside[0].pid), freed, doubts)


def _afterwards(
    watching: Watcher,
    pfns: Sequence[int],
    surprising: Sequence[int],
    captured_ns: int,
    observation: Observation,
) -> tuple[dict[int, Frame], dict[int, str]]:
    """What became of frames that were not freed, and how surprising frames left an LRU batch.

    pfns: of folios that were predicted to be freed: the kernel's words about them, and how they were freed
    since. The LRU batches are emptied to see whether that frees them. surprising: of folios that were
    predicted to stay.
    """
    if not pfns:
        events = watching.others.read(all_of_them=False) if surprising else []
        return {}, later_frees.left_batches(events, frozenset(surprising), captured_ns, observation.ended_ns)
    before = _frame_words(watching.tree, pfns)
    # the clock of the events
    now_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    drained_ns = now_ns if lru_drain.drain() else None
    after = _frame_words(watching.tree, pfns)
    events = watching.others.read(all_of_them=False)
    ours = frozenset(files.threads(files.PROC, os.getpid()))
    fates = later_frees.fates(events, frozenset(pfns), captured_ns, observation.began_ns, drained_ns, ours)
    stays = ((before ^ after) & [np.uint64(DECIDING), ~np.uint64(0)] == 0).all(axis=1)
    left = later_frees.left_batches(events, frozenset(surprising), captured_ns, observation.ended_ns)
    frames = {
        pfn: Frame(int(flags), int(mapcount), bool(same), fates.get(pfn))
        for pfn, (flags, mapcount), same in zip(pfns, before.tolist(), stays, strict=True)
    }
    return frames, left


def _frame_words(tree: Tree, pfns: Sequence[int]) -> files.U64:
    """kpageflags and kpagecount of frames, shape (frames, 2)."""
    words = np.zeros((len(pfns), 2), np.uint64)
    for row, pfn in enumerate(pfns):
        files.read_words(tree.flags_fd, pfn, words[row, :1])
        files.read_words(tree.counts_fd, pfn, words[row, 1:])
    return words
