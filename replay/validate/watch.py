"""Each exit of a command, captured, let go under the kernel's tracepoints, and compared with the replay."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import polars as pl
import pyarrow as pa

from replay.capture import command, exits, live, procfs, settings, space
from replay.capture.follow import Missed
from replay.capture.space import Options, Tree
from replay.capture.table import frame_of, table
from replay.errors import ProcessGoneError, ReplayError
from replay.trace.file import ARROW_SCHEMA, Trace
from replay.trace.kpageflags import KPF_ANON, KPF_LRU, KPF_SWAPCACHE, bit
from replay.validate import observe, predict, tracefs
from replay.validate.compare import Comparison, Frame, compare, stayed
from replay.validate.observe import Observation
from replay.validate.predict import Prediction
from replay.validate.undo import Undo, undone

EXIT_SECONDS: Final = 60.0
"""How long a process may take from its exit stop to its end; terabytes take a minute."""

STABLE: Final = bit(KPF_ANON) | bit(KPF_SWAPCACHE) | bit(KPF_LRU)
"""Flags by which the replay, or the cause of a difference, is decided."""

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
"""Columns that decide the replay."""


@dataclass(frozen=True)
class Verdict:
    """How the replay of one exit compares with what the kernel did.

    orders: folios that the page tables mapped, by order. page_tables: `gather` or `rcu`. lru_batched:
    folios that were not on the LRU at the exit stop. changed: extents that differed between two captures of
    the stopped process. comparison: None if the teardown could not be observed, then `unseen` says why.
    """

    workload: str
    pid: int
    comm: str
    orders: dict[int, int]
    page_tables: str
    lru_batched: int
    changed: int
    prediction: Prediction
    observation: Observation
    comparison: Comparison


@dataclass(frozen=True)
class Watched:
    """A finished command. status: as of `exits.Recorded`. missed: address spaces not compared, by cause."""

    status: int
    verdicts: tuple[Verdict, ...]
    missed: dict[Missed, int]


@dataclass
class Watcher:
    """What watching needs: an open procfs tree and a tracing instance."""

    tree: Tree
    instance: tracefs.Instance
    in_gather: bool


@contextlib.contextmanager
def watcher() -> Iterator[tuple[Watcher, Undo]]:
    """Set tracing up, and undo it when the block ends, or this process does.

    Raises `ReplayError` if there is no tracefs, the kernel lacks the tracepoints, or rights are missing.
    """
    with (
        tracefs.mounted() as (root, fd),
        _undoing(fd) as undo,
        space.opened(procfs.PROC, os.getpid()) as tree,
    ):
        tracefs.remove_stale(root)
        with tracefs.instance(root, undo, "validate", observe.EVENTS) as instance:
            if "mm_page_free" not in instance.events:
                raise ReplayError(
                    "this kernel has no tracepoint kmem:mm_page_free: validate needs CONFIG_TRACEPOINTS and "
                    "CONFIG_EVENT_TRACING"
                )
            in_gather = predict.page_tables_in_gather(procfs.PROC, settings.architecture(live=True))
            yield Watcher(tree, instance, in_gather), undo


@contextlib.contextmanager
def _undoing(fd: int) -> Iterator[Undo]:
    try:
        with undone([fd]) as undo:
            yield undo
    except RuntimeError as error:
        raise ReplayError(f"a kernel setting could not be put back ({error}): put it back by hand") from None


def watch(
    watching: Watcher,
    argv: Sequence[str],
    workload: str,
    *,
    progress: Callable[[Verdict], None] | None = None,
) -> Watched:
    """Run a command and compare each exit among its processes with the replay.

    Raises `ReplayError` if it cannot be started or traced, or if the kernel lost trace events.
    """
    verdicts: list[Verdict] = []
    stopped: dict[int, _Stopped] = {}

    def at_exit(pid: int, tid: int) -> Missed | None:
        found = _capture(watching, pid, tid)
        if isinstance(found, Missed):
            return found
        stopped[pid] = found
        watching.instance.reserve(observe.buffer_bytes(int(found.trace.frame["pages"].sum())))
        watching.instance.watch(tid)
        return None

    def after_exit(pid: int, tid: int) -> None:
        found = stopped.pop(pid)
        try:
            _await_end(found.pidfd, pid)
        finally:
            os.close(found.pidfd)
        watching.instance.rest()
        verdict = _judge(watching, workload, pid, found)
        verdicts.append(verdict)
        if progress:
            progress(verdict)

    with command.held(argv) as started, command.signals_passed(started):
        followed = exits.follow_command(started, at_exit, after_exit)
    status = os.waitstatus_to_exitcode(followed.root_status or 0)
    return Watched(status if status >= 0 else 128 - status, tuple(verdicts), dict(followed.missed))


@dataclass(frozen=True)
class _Stopped:
    """A process at its exit stop. trace: its address space, read last right before it was let go."""

    trace: Trace
    changed: int
    pidfd: int


def _capture(watching: Watcher, pid: int, tid: int) -> _Stopped | Missed:
    try:
        pidfd = os.pidfd_open(pid)
        first = _read(watching.tree, pid, tid)
        second = _read(watching.tree, pid, tid)
    except (ProcessGoneError, ProcessLookupError):
        return Missed.KILLED
    except ReplayError:
        return Missed.UNREADABLE
    return _Stopped(second, _differing_rows(first.frame, second.frame), pidfd)


def _read(tree: Tree, pid: int, tid: int) -> Trace:
    parts: list[pa.Table] = []
    options = Options()
    with exits.by_task(tree, pid, tid) as seen:
        captured = space.capture_space(
            seen,
            pid,
            lambda rows, vmas, status: parts.append(table(rows, vmas, 0, pid, status.name)),
            options,
        )
    meta = live.metadata(tree, [(pid, captured)], options, held="ptrace", mode="exit")
    rows = pa.concat_tables(parts).unify_dictionaries() if parts else ARROW_SCHEMA.empty_table()
    return Trace(frame_of(rows), meta, f"{captured.status.name}-{pid}")


def _differing_rows(first: pl.DataFrame, second: pl.DataFrame) -> int:
    """Extents that only one of two captures has."""

    def deciding(frame: pl.DataFrame) -> pl.DataFrame:
        return frame.select(*COMPARED, pl.col("kpageflags") & STABLE)

    one, other = deciding(first), deciding(second)
    if one.equals(other):
        return 0
    return max(
        len(one.join(other, on=one.columns, how="anti")), len(other.join(one, on=one.columns, how="anti"))
    )


def _await_end(pidfd: int, pid: int) -> None:
    """Wait until all tasks of a process have ended: exit_mm() comes before that."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if not poll.poll(EXIT_SECONDS * 1000):
        raise ReplayError(
            f"process {pid} does not end within {EXIT_SECONDS:.0f} s of its exit: something holds it in the kernel"
        )


def _judge(watching: Watcher, workload: str, pid: int, found: _Stopped) -> Verdict:
    prediction = predict.predict(found.trace, watching.in_gather)
    observation = observe.observe(watching.instance.read(), watching.instance.events, prediction.folios.maps)
    after = frames(watching.tree, stayed(prediction.freed, observation.freed))
    orders = np.unique(prediction.folios.order, return_counts=True)
    return Verdict(
        workload=workload,
        pid=pid,
        comm=found.trace.meta.address_spaces[0].comm,
        orders=dict(zip(orders[0].tolist(), orders[1].tolist(), strict=True)),
        page_tables="gather" if watching.in_gather else "rcu",
        lru_batched=int(np.count_nonzero(~prediction.folios.lru)),
        changed=found.changed,
        prediction=prediction,
        observation=observation,
        comparison=compare(prediction, observation, after=after, changed=found.changed),
    )


def frames(tree: Tree, pfns: Iterable[int]) -> dict[int, Frame]:
    """The kernel's words about some frames, now."""
    found = {}
    word = np.zeros(2, np.uint64)
    for pfn in pfns:
        procfs.read_words(tree.flags_fd, pfn, word[:1])
        procfs.read_words(tree.counts_fd, pfn, word[1:])
        found[pfn] = Frame(int(word[0]), int(word[1]))
    return found
