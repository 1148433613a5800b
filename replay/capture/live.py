# SPDX-License-Identifier: Apache-2.0
"""Capture of running processes: one, those of a cgroup, all; or of those in a saved procfs tree."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import replay
from replay.capture import address_space, loops
from replay.capture.address_space import PORTION_PAGES, Options, Progress, Space, Steps
from replay.capture.extents import Extents, Owner
from replay.capture.rss import Figure
from replay.errors import ProcessGoneError, ReplayError
from replay.process import shared, stop
from replay.procfs import files, kernel
from replay.procfs.files import Status, Vma
from replay.procfs.source import Tree, by_task, opened
from replay.support.atomic_file import atomic_file
from replay.trace.metadata import AddressSpace, Metadata
from replay.trace.schema import ptes_per_table

if TYPE_CHECKING:
    from replay.capture.collect import Sink
    from replay.trace.frame import Trace

Take = Callable[[Extents, Owner], None]

ATTEMPTS: Final = 3

MUCH: Final = 0.001
"""Share of entries changed while they were read from which a capture is made again."""


WAITING_PAGES: Final = PORTION_PAGES
"""Pages of processes that are read, from which on they are built before the next is read."""


class Capture(NamedTuple):
    """A finished capture.

    trace: the rows, if they were not written to `path`. figures: per address space, the kernel's figures
    beside what was captured (`reconcile.text` makes lines of them). vanished: processes that ended before
    they could be read. refused: a line for each process that could not be captured.
    """

    meta: Metadata
    figures: tuple[tuple[Figure, ...], ...]
    extents: int
    path: Path | None = None
    trace: Trace | None = None
    vanished: int = 0
    refused: tuple[str, ...] = ()


def capture_process(
    pid: int,
    out: str | Path | None = None,
    *,
    procfs_root: str | Path = files.PROC,
    hold: bool = True,
    use_scan: bool = True,
    force: bool = False,
    known_pmd: Sequence[int] | None = None,
    known_dirty: Sequence[tuple[int, int]] | None = None,
    progress: Progress | None = None,
) -> Capture:
    """Capture a process, held still while it is read, into the trace file `out`, or into memory.

    procfs_root: the procfs tree, also a saved one. hold: False reads the process while it runs. use_scan:
    False does without PAGEMAP_SCAN. force: overwrite `out`. known_pmd: first pages of all PMD mappings,
    known_dirty: (first page, pages) dirty in the PTE, where a saved tree cannot tell. progress: called with
    pages done and in all.

    Raises `ReplayError` with cause and remedy; then `out` does not appear.
    """
    root = Path(procfs_root)
    with stop.interruptible(), opened(root, pid) as tree:
        _prepare()
        size = ptes_per_table(tree.page_size)
        options = Options(
            use_scan=use_scan,
            held=hold or not tree.live,
            known_pmd=None if known_pmd is None else tuple((vpn, vpn + size) for vpn in known_pmd),
            known_dirty=None if known_dirty is None else tuple((vpn, vpn + n) for vpn, n in known_dirty),
        )
        for attempt in range(ATTEMPTS):
            with contextlib.suppress(_AgainError):
                return _attempt(tree, pid, out, force, options, progress, last=attempt == ATTEMPTS - 1)
    raise AssertionError("the last attempt returns or raises")


class _AgainError(Exception):
    """Much changed while it was read: discard what was written and capture again."""


def _attempt(
    tree: Tree,
    pid: int,
    out: str | Path | None,
    force: bool,
    options: Options,
    progress: Progress | None,
    last: bool,
) -> Capture:
    with _sink(out, force) as sink:
        others = _sharing(tree).get(pid, ())
        with (
            _held(tree, pid, options.held) as hold,
            by_task(tree, pid, _task(tree, pid) or pid) as seen,
        ):
            captured = capture_into(seen, pid, 0, sink.take, options, progress, hold.let_go)
            held_ms = hold.held_ms()
        captured = captured._replace(held_ms=held_ms, shared_with=others)
        if not last and captured.changed > MUCH * captured.entries:
            raise _AgainError
        meta = metadata(tree, [(pid, captured)], options, held=hold.how)
        return _finish(sink, meta, [captured], out, f"{captured.status.name}-{pid}")


@contextlib.contextmanager
def _sink(out: str | Path | None, force: bool) -> Iterator[Sink]:
    """A sink, into the file `out`, which appears when the block ends without an error, or into memory."""
    from replay.capture.collect import Sink

    with atomic_file(out, force=force) if out is not None else contextlib.nullcontext() as file:
        sink = Sink(file)
        try:
            yield sink
        except BaseException:
            sink.discard()
            raise


def _prepare() -> None:
    """Load and compile all that a capture needs, which may take seconds: before anything is held still."""
    from replay.capture.collect import warm_up

    loops.prepare()
    warm_up()


def capture_all(
    out: str | Path | None = None,
    *,
    procfs_root: str | Path = files.PROC,
    hold: bool = True,
    use_scan: bool = True,
    force: bool = False,
    progress: Progress | None = None,
) -> Capture:
    """Capture all processes but replay itself, each held still while it is read, into one trace.

    progress: called with processes done and in all; the rest as in `capture_process`. Kernel threads have
    no memory and are left out. Raises `ReplayError` if not one process can be captured.
    """
    root = Path(procfs_root)
    pids = files.pids(root)
    with stop.interruptible(), opened(root, pids[0] if pids else 0) as tree:
        _prepare()
        options = Options(use_scan=use_scan, held=hold or not tree.live)
        return _capture_each(tree, pids, out, force, options, progress, together=None, name="all")


def capture_processes(
    pids: Sequence[int],
    out: str | Path | None = None,
    *,
    procfs_root: str | Path = files.PROC,
    hold: bool = True,
    use_scan: bool = True,
    force: bool = False,
    progress: Progress | None = None,
) -> Capture:
    """Capture some processes, each held still while it is read, into one trace.

    The rest as in `capture_all`.
    """
    root = Path(procfs_root)
    with stop.interruptible(), opened(root, pids[0]) as tree:
        _prepare()
        options = Options(use_scan=use_scan, held=hold or not tree.live)
        return _capture_each(tree, pids, out, force, options, progress, together=None, name="processes")


def capture_cgroup(
    cgroup: str | Path,
    out: str | Path | None = None,
    *,
    procfs_root: str | Path = files.PROC,
    hold: bool = True,
    use_scan: bool = True,
    force: bool = False,
    progress: Progress | None = None,
) -> Capture:
    """Capture the processes of a cgroup and of those below it into one trace.

    cgroup: its folder, or its name in any hierarchy. They are held together by its freezer where it has
    one, one by one otherwise. The rest as in `capture_all`.
    """
    root = Path(procfs_root)
    own = files.own_pid(root)
    if own is None or own != files.own_pid(files.PROC):
        raise ReplayError(
            f"a cgroup names processes as our PID namespace does, which {root} does not: use --all"
        )
    path = stop.cgroup_folder(cgroup)
    with stop.interruptible(), contextlib.ExitStack() as stack:
        freezes = hold and stop.has_freezer(path) and own not in stop.members(path)
        _prepare()
        # all that takes time comes before the cgroup stands still
        tree = stack.enter_context(opened(root, own))
        together = stack.enter_context(stop.frozen(path)) if freezes else None
        pids = stop.members(path)
        if not pids:
            raise ReplayError(f"no process in cgroup {path}: name one with processes")
        options = Options(use_scan=use_scan, held=hold)
        return _capture_each(tree, pids, out, force, options, progress, together=together, name=path.name)


def _capture_each(
    tree: Tree,
    pids: Sequence[int],
    out: str | Path | None,
    force: bool,
    options: Options,
    progress: Progress | None,
    *,
    together: stop.Hold | None,
    name: str,
) -> Capture:
    """Capture processes one after the other; together: how they are all held already, if they are.

    Those that are held together are read first, and built, in the same order, when all are read or when
    `WAITING_PAGES` wait.
    """
    spaces: list[tuple[int, Space]] = []
    refused: list[str] = []
    vanished = waiting_pages = 0
    own = files.own_pid(tree.root)
    others = _sharing(tree)
    captured_pids: set[int] = set()
    waiting: deque[tuple[int, Steps]] = deque()
    with contextlib.ExitStack() as stack:
        sink = stack.enter_context(_sink(out, force))

        def take(rows: Extents, owner: Owner) -> None:
            sink.take(rows, owner._replace(mm=len(spaces)))

        def add(pid: int, captured: Space) -> None:
            spaces.append((pid, captured._replace(shared_with=others.get(pid, ()))))

        def build_waiting() -> None:
            while waiting:
                pid, steps = waiting.popleft()
                add(pid, address_space.finished(steps))

        for done, pid in enumerate(pids, 1):
            tid = _task(tree, pid)
            if pid == own or tid is None or not captured_pids.isdisjoint(others.get(pid, ())):
                continue
            before = sink.extents
            try:
                with (
                    _held(tree, pid, options.held and not together) as hold,
                    by_task(tree, pid, tid) as seen,
                ):
                    steps = stack.enter_context(contextlib.closing(in_steps(seen, pid, 0, take, options)))
                    read, pages = next(steps)
                    if read < pages or waiting_pages > WAITING_PAGES:
                        build_waiting()
                        before, waiting_pages = sink.extents, 0
                    if read < pages:
                        address_space.read_all(steps)
                    if together:
                        waiting.append((pid, steps))
                        waiting_pages += pages
                    else:
                        hold.let_go()
                        captured = address_space.finished(steps)
                        add(pid, captured._replace(held_ms=hold.held_ms()))
                captured_pids.add(pid)
            except ReplayError as error:
                if sink.written > before:
                    raise  # half of an address space is in the file already
                sink.drop(before)
                if isinstance(error, ProcessGoneError):
                    vanished += 1
                else:
                    refused.append(str(error))
            if progress:
                progress(done, len(pids))
        if together:
            together.let_go()
            build_waiting()
            held_ms = together.held_ms()
            spaces = [(pid, captured._replace(held_ms=held_ms)) for pid, captured in spaces]
        if not spaces:
            raise ReplayError(refused[0] if refused else "no process to capture: they have ended")
        how = together.how if together else ("ptrace" if options.held and tree.live else "none")
        meta = metadata(tree, spaces, options, held=how)
        found = [captured for _, captured in spaces]
        return _finish(sink, meta, found, out, name, vanished=vanished, refused=tuple(refused))


def _finish(
    sink: Sink, meta: Metadata, spaces: list[Space], out: str | Path | None, name: str, **counts: Any
) -> Capture:
    figures = tuple(captured.figures for captured in spaces)
    if out is not None:
        sink.close(meta)
        return Capture(meta, figures, sink.extents, path=Path(out), **counts)
    from replay.trace.frame import Trace, frame_of

    return Capture(meta, figures, sink.extents, trace=Trace(frame_of(sink.rows()), meta, name), **counts)


def capture_into(
    tree: Tree,
    pid: int,
    mm: int,
    take: Take,
    options: Options,
    progress: Progress | None = None,
    let_go: Callable[[], None] | None = None,
) -> Space:
    """Capture one address space that the caller holds still; `take` gets its rows.

    mm: its number in the trace. let_go: called when all is read. Raises as
    `address_space.capture_in_steps` does.
    """
    with contextlib.closing(in_steps(tree, pid, mm, take, options, progress)) as steps:
        address_space.read_all(steps)
        if let_go:
            let_go()
        return address_space.finished(steps)


def in_steps(
    tree: Tree, pid: int, mm: int, take: Take, options: Options, progress: Progress | None = None
) -> Steps:
    """The same in steps (see `address_space.capture_in_steps`)."""

    def emit(rows: Extents, vmas: Sequence[Vma], status: Status) -> None:
        take(rows, Owner(mm, pid, status.name, vmas))

    return address_space.capture_in_steps(tree, pid, emit, options, progress)


def _sharing(tree: Tree) -> dict[int, tuple[int, ...]]:
    """Processes that use one address space (see `shared.sharing`); none where the numbers are not ours."""
    if not tree.live or files.own_pid(tree.root) != files.own_pid(files.PROC):
        return {}
    return shared.sharing(files.pids(tree.root))


def _task(tree: Tree, pid: int) -> int | None:
    """The task through which a process is read; of a saved tree, which holds no tasks, the first."""
    return files.task_with_memory(tree.root, pid) if tree.live else pid


@contextlib.contextmanager
def _held(tree: Tree, pid: int, hold: bool) -> Iterator[stop.Hold]:
    """Hold a live process."""
    if not (hold and tree.live):
        yield stop.not_by_us("none")
        return
    if files.own_pid(tree.root) != files.own_pid(files.PROC):
        raise ReplayError(
            f"{tree.root} numbers processes of another PID namespace, which ptrace cannot reach: "
            "capture with --no-freeze, or run replay in that namespace"
        )
    with stop.held(tree.root, pid) as holding:
        yield holding


def described(
    pid: int, status: Status, command_line: str, unaccounted: Mapping[str, int], held_ms: float
) -> AddressSpace:
    """The trace's record of an address space."""
    return AddressSpace(
        pid=pid,
        comm=status.name,
        page_tables=status.page_tables,
        rss_anon=status.rss_anon,
        rss_file=status.rss_file,
        rss_shmem=status.rss_shmem,
        swap=status.swap,
        hugetlb=status.hugetlb,
        cmdline=command_line,
        unaccounted=unaccounted,
        held_ms=round(held_ms, 3),
    )


def described_space(pid: int, space: Space) -> AddressSpace:
    """The same of a captured one."""
    found = described(pid, space.status, space.command_line, space.unaccounted, space.held_ms)
    return dataclasses.replace(found, shared_with=space.shared_with)


def metadata(
    tree: Tree, spaces: Sequence[tuple[int, Space]], options: Options, *, held: str, mode: str = "live"
) -> Metadata:
    """Metadata of a trace of these (pid, address space)."""
    return Metadata(
        address_spaces=tuple(described_space(pid, captured) for pid, captured in spaces),
        kernel_release=files.kernel_release(tree.root),
        architecture=kernel.architecture(tree.root, tree.live),
        page_size=tree.page_size,
        captured_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        mode=mode,
        held=held,
        pmd="known" if all(captured.pmd_known for _, captured in spaces) else "unknown",
        mapcounts=tree.mapcounts,
        dirty="inferred" if options.known_dirty is None else "known",
        changed_entries=sum(captured.changed for _, captured in spaces),
        thp=kernel.thp(tree.live),
        tool_version=replay.__version__,
    )
