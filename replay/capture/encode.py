"""A process of our own that makes rows of snapshots and writes them, while the command goes on.

It gets snapshots through a pipe, which holds what it has not come to yet: bounded by the pipe's size, not by
the number of processes recorded. A thread would not do: it would take the interpreter's lock from the tracer.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, Final, NoReturn

import pyarrow as pa

from replay.capture import live, snapshot
from replay.capture.command import PASSED
from replay.capture.snapshot import Snapshot
from replay.capture.space import Options, Space, Tree
from replay.capture.table import table
from replay.errors import ProcessGoneError, ReplayError
from replay.trace.metadata import AddressSpace, Metadata
from replay.trace.write import ROW_GROUP_ROWS, TraceWriter

PIPE_BYTES: Final = 32 << 20
"""What may wait in the pipe: some hundred snapshots of compilers."""


@dataclass(frozen=True)
class Large:
    """Ask for the capture of a process that is too large for a snapshot, in the procfs tree at `root`."""

    root: str
    pid: int


@dataclass(frozen=True)
class Done:
    """What was written."""

    meta: Metadata
    extents: int


@dataclass(frozen=True)
class Encoder:
    """The process: `requests` takes snapshots, requests for large captures and None, `replies` answers."""

    pid: int
    requests: Connection
    replies: Connection


@contextlib.contextmanager
def encoding(file: Any, tree: Tree, options: Options) -> Iterator[Encoder]:
    """Start the process, which writes a trace to `file`; it ends with the block, whatever it has written."""
    their_requests, requests = Pipe(duplex=False)
    replies, their_replies = Pipe(duplex=False)
    with contextlib.suppress(OSError):
        fcntl.fcntl(requests.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, PASSED)
    pid = os.fork()
    if not pid:
        requests.close()
        replies.close()
        _work(their_requests, their_replies, file, tree, options)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    their_requests.close()
    their_replies.close()
    try:
        with requests, replies:
            yield Encoder(pid, requests, replies)
    finally:
        # whoever waits for all children may have reaped it
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def send(encoder: Encoder, message: Snapshot | Large | None) -> None:
    """Hand over a message; raises what the encoder failed with."""
    try:
        if encoder.replies.poll():
            receive(encoder)
        encoder.requests.send(message)
    except BrokenPipeError:
        receive(encoder)


def receive(encoder: Encoder) -> Any:
    """The next answer; raises what the encoder failed with."""
    try:
        answer = encoder.replies.recv()
    except EOFError:
        raise ReplayError(
            "the process that writes the trace was killed: free some memory, try again"
        ) from None
    if isinstance(answer, BaseException):
        raise answer
    return answer


@dataclass
class _Written:
    """What was read so far; tables wait until they fill a row group."""

    writer: TraceWriter
    spaces: list[AddressSpace] = field(default_factory=list)
    pmd_known: bool = True
    changed: int = 0
    extents: int = 0
    waiting: list[pa.Table] = field(default_factory=list)
    waiting_rows: int = 0


def _work(requests: Connection, replies: Connection, file: Any, tree: Tree, options: Options) -> NoReturn:
    """In the child: until the caller says that it was all, or is gone."""
    try:
        # what wakes us, a write of the tracer, must not lose its processor to us
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        # they mean the command, or the caller, who tells us what to do
        for number in PASSED:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED)
        written = _Written(TraceWriter(file))
        while (message := requests.recv()) is not None:
            if isinstance(message, Snapshot):
                _add_snapshot(written, tree, message)
            else:
                replies.send(_add_large(written, tree, message, options))
        replies.send(_close(written, tree, options))
        file.flush()
    except EOFError:
        pass
    except BaseException as error:
        # the command may need the room
        with contextlib.suppress(OSError):
            os.ftruncate(file.fileno(), 0)
        with contextlib.suppress(OSError):
            replies.send(error)
    finally:
        os._exit(0)


def _add_snapshot(written: _Written, tree: Tree, taken: Snapshot) -> None:
    rows, vmas, changed = snapshot.build(taken, tree.page_size, tree.mapcounts == "precise")
    captured = Space(taken.status, True, changed, len(taken.words), ())
    _add(written, taken.pid, captured, [table(rows, vmas, len(written.spaces), taken.pid, taken.status.name)])


def _add_large(written: _Written, tree: Tree, wanted: Large, options: Options) -> bool:
    """Capture a process that stands still; False if it has ended meanwhile."""
    tables: list[pa.Table] = []
    number, seen = len(written.spaces), dataclasses.replace(tree, root=Path(wanted.root))
    try:
        captured = live.capture_into(seen, wanted.pid, number, tables.append, options)
    except ProcessGoneError:
        return False
    _add(written, wanted.pid, captured, tables)
    return True


def _add(written: _Written, pid: int, captured: Space, tables: list[pa.Table]) -> None:
    written.spaces.append(live.address_space(pid, captured))
    written.pmd_known &= captured.pmd_known
    written.changed += captured.changed
    written.waiting += tables
    written.waiting_rows += sum(map(len, tables))
    if written.waiting_rows >= ROW_GROUP_ROWS:
        _flush(written)


def _flush(written: _Written) -> None:
    tables, written.waiting, written.waiting_rows = written.waiting, [], 0
    if tables:
        rows = pa.concat_tables(tables).unify_dictionaries()
        written.extents += len(rows)
        written.writer.append_table(rows)


def _close(written: _Written, tree: Tree, options: Options) -> Done:
    _flush(written)
    meta = dataclasses.replace(
        live.metadata(tree, [], options, held="ptrace", mode="exit"),
        address_spaces=tuple(written.spaces),
        pmd="known" if written.pmd_known else "unknown",
        changed_entries=written.changed,
    )
    written.writer.meta = meta
    written.writer.close()
    return Done(meta, written.extents)
