# SPDX-License-Identifier: Apache-2.0
"""Address spaces handed to a process of our own, which makes rows of them while the command goes on.

Their words lie in slabs of memory that both processes see: the tracer fills one while the encoder works on
others. What waits is bounded by the slabs, not by the number of processes recorded. A thread would not do:
it would take the interpreter's lock from the tracer.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe
from typing import Any, Final, NoReturn

import numpy as np

from replay.errors import ReplayError
from replay.process.command import PASSED
from replay.procfs.files import U64
from replay.recording.snapshot import MOST_SNAPSHOTS, Snapshot
from replay.trace.metadata import Metadata

SLABS: Final = 4
SLAB_WORDS: Final = 1 << 19
"""Words of one slab: dozens of compilers, hundreds of shells."""

PIPE_BYTES: Final = 8 << 20
"""What may wait in the pipe: the texts of some slabs."""


@dataclass(frozen=True)
class Batch:
    """Snapshots, and where in slab `slab` the words of each begin."""

    slab: int
    snapshots: list[Snapshot]
    offsets: list[int]


@dataclass(frozen=True)
class Free:
    """The slab may be filled again."""

    slab: int


@dataclass(frozen=True)
class Large:
    """Ask for the capture of a process that is too large for a slab, in the procfs tree at `root`.

    on_trial: it waits inside execve; a `Verdict` on this process follows.
    """

    root: str
    pid: int
    on_trial: bool = False


@dataclass(frozen=True)
class Verdict:
    """Whether what was captured on trial of a process was torn down, and is to be kept."""

    pid: int
    kept: bool


@dataclass(frozen=True)
class Captured:
    """Whether it was captured; it may have ended meanwhile."""

    whole: bool


@dataclass(frozen=True)
class Done:
    """What was written."""

    meta: Metadata
    extents: int


Request = Batch | Large | Verdict


@dataclass
class Encoder:
    """The process: `requests` takes what is to be written, `replies` gives its answers.

    current: the slab that is filled, `used` words of it, by `snapshots`; busy: slabs handed over.
    """

    pid: int
    requests: Connection
    replies: Connection
    slabs: list[U64]
    current: int = 0
    used: int = 0
    snapshots: list[Snapshot] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    busy: set[int] = field(default_factory=set)


Work = Callable[[Iterator[Request], Callable[[Free | Captured | Done], None], list[U64]], None]
"""What the process does, given requests until there are no more, what sends answers, and the slabs."""


@contextlib.contextmanager
def encoding(file: Any, work: Work) -> Iterator[Encoder]:
    """Start the process, whose `work` writes to `file`; it ends with the block, whatever it has written."""
    slabs = [np.frombuffer(mmap.mmap(-1, SLAB_WORDS * 8), np.uint64) for _ in range(SLABS)]
    their_requests, requests = Pipe(duplex=False)
    replies, their_replies = Pipe(duplex=False)
    with contextlib.suppress(OSError):
        fcntl.fcntl(requests.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, PASSED)
    pid = os.fork()
    if not pid:
        requests.close()
        replies.close()
        _encode(their_requests, their_replies, slabs, file, work)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    their_requests.close()
    their_replies.close()
    try:
        with requests, replies:
            yield Encoder(pid, requests, replies, slabs)
    finally:
        # whoever waits for all children may have reaped it
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def room(encoder: Encoder) -> U64:
    """Where the words of the next snapshot go: what is left of a slab, waited for if none is free."""
    while encoder.current in encoder.busy:
        _take(encoder, _answer(encoder))
    return encoder.slabs[encoder.current][encoder.used :]


def add(encoder: Encoder, snapshot: Snapshot) -> None:
    """Hand over a snapshot whose words are in `room`."""
    encoder.snapshots.append(snapshot)
    encoder.offsets.append(encoder.used)
    encoder.used += snapshot.words
    if len(encoder.snapshots) == MOST_SNAPSHOTS:
        flush(encoder)


def add_copy(encoder: Encoder, snapshot: Snapshot, words: U64) -> None:
    """Hand over a snapshot whose words are elsewhere; they fit in a slab."""
    while len(room_left := room(encoder)) < len(words):
        flush(encoder)
    room_left[: len(words)] = words
    add(encoder, snapshot)


def judge(encoder: Encoder, verdict: Verdict) -> None:
    """Say what becomes of a capture on trial."""
    _send(encoder, verdict)


def flush(encoder: Encoder) -> bool:
    """Go on with the next slab; False if nothing is in the current one."""
    if not encoder.snapshots:
        return False
    _send(encoder, Batch(encoder.current, encoder.snapshots, encoder.offsets))
    encoder.busy.add(encoder.current)
    encoder.current = (encoder.current + 1) % SLABS
    encoder.used, encoder.snapshots, encoder.offsets = 0, [], []
    return True


def capture_large(encoder: Encoder, large: Large) -> bool:
    """Have a process captured that stands still; False if it has ended meanwhile."""
    flush(encoder)
    _send(encoder, large)
    while not isinstance(answer := _answer(encoder), Captured):
        _take(encoder, answer)
    return answer.whole


def finish(encoder: Encoder) -> Done:
    """Wait until all is written."""
    flush(encoder)
    _send(encoder, None)
    while not isinstance(answer := _answer(encoder), Done):
        _take(encoder, answer)
    return answer


def _send(encoder: Encoder, request: Request | None) -> None:
    """Send a request, None after the last; raises what the encoder failed with."""
    try:
        while encoder.replies.poll():
            _take(encoder, _answer(encoder))
        encoder.requests.send(request)
    except BrokenPipeError:
        while True:
            _take(encoder, _answer(encoder))


def _take(encoder: Encoder, answer: Any) -> None:
    assert isinstance(answer, Free)
    encoder.busy.discard(answer.slab)


def _answer(encoder: Encoder) -> Any:
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


def _encode(requests: Connection, replies: Connection, slabs: list[U64], file: Any, work: Work) -> NoReturn:
    """In the child: until the caller says that it was all, or is gone."""
    try:
        # what wakes us, a write of the tracer, must not lose its processor to us
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        # they mean the command, or the caller, who tells us what to do
        for number in PASSED:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED)
        work(iter(requests.recv, None), replies.send, slabs)
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
