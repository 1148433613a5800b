# SPDX-License-Identifier: Apache-2.0
"""How long exits take: processes with known memory are captured, killed and timed until the kernel reports
their end.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from replay.errors import ReplayError
from replay.trace.frame import Trace
from replay.validate.workload_settings import thp

PROGRAM: Final = Path(__file__).with_name("program.py")

SETTLE_SECONDS: Final = 0.05
"""A pause between `ready` and the kill, in which background work that the start caused is done."""

TIMEOUT_MS: Final = 60_000


@dataclass(frozen=True)
class Case:
    """A process to be measured.

    memory: (kind, MiB); thp: files below transparent_hugepage and what they must say meanwhile.
    """

    name: str
    memory: tuple[tuple[str, int], ...]
    thp: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Exit:
    """A measured exit.

    seconds: of each repetition, less those of a process without the memory.
    """

    case: Case
    trace: Trace
    seconds: tuple[float, ...]

    @property
    def least(self) -> float:
        """The shortest repetition, in seconds: other work on the machine only adds time."""
        return min(self.seconds)


def seconds_to_end(pid: int) -> float:
    """Kill a process -> seconds until its pidfd reports the end.

    A pidfd becomes readable when the process is a zombie. exit_mmap() has run by then, because do_exit()
    calls exit_mm() before exit_notify(). The last user of an address space tears it down, so no other process
    may share it.
    """
    descriptor = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        began = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        if not poll.poll(TIMEOUT_MS):
            raise ReplayError(
                f"process {pid} was killed but has not ended after {TIMEOUT_MS // 1000} s: something "
                f"holds it in the kernel, see /proc/{pid}/stack"
            )
        return time.perf_counter() - began
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def started(case: Case, path: Path) -> Iterator[int]:
    """Start the process of a case and wait until its memory is as it should be; yields its PID.

    path: a file that kind `file` maps. Raises `ReplayError` if the process ends early.
    """
    words = [word for kind, mib in case.memory for word in (kind, str(mib))]
    command = [sys.executable, "-I", str(PROGRAM), *words, "--file", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout and process.stderr
            line = process.stdout.readline()
            if not line:
                reason = (process.stderr.read().strip().splitlines() or ["it was killed"])[-1]
                raise ReplayError(f"the process '{case.name}' could not map its memory: {reason}")
            time.sleep(SETTLE_SECONDS)
            yield int(line.split()[1])
        finally:
            process.kill()


def empty_seconds(path: Path, runs: int) -> float:
    """How long the exit of a process takes that has only the interpreter: the median, in seconds."""
    times = []
    for _ in range(runs):
        with started(Case("empty", ()), path) as pid:
            times.append(seconds_to_end(pid))
    return statistics.median(times)


def measure(
    cases: Sequence[Case], path: Path, runs: int, empty: float, done: Callable[[], None] = lambda: None
) -> list[Exit]:
    """Run all cases `runs` times: captured the first time, timed each time.

    The cases take turns. If the machine is slower for a minute, every case has its runs in other minutes too.
    THP switches are set as a case wants them, and put back. empty: of `empty_seconds`. done: called after
    each process.
    """
    from replay.capture.live import capture_process

    traces: list[Trace] = []
    times: list[list[float]] = [[] for _ in cases]
    for turn in range(runs):
        for case, seconds in zip(cases, times, strict=True):
            with thp(case.thp), started(case, path) as pid:
                if turn == 0:
                    trace = capture_process(pid).trace
                    assert trace is not None
                    traces.append(trace)
                seconds.append(max(seconds_to_end(pid) - empty, 1e-9))
            done()
    return [Exit(*found) for found in zip(cases, traces, map(tuple, times), strict=True)]
