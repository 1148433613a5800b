# SPDX-License-Identifier: Apache-2.0
"""`replay validate`: run a command or the built-in workloads, observe the exits, collect the results."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from replay.errors import ReplayError, UsageError
from replay.process import stop
from replay.process.follow import Missed
from replay.teardown import variants
from replay.validate import workload_settings
from replay.validate.watch import Verdict, Watched, Watcher, watch, watcher
from replay.validate.workload_settings import UnavailableError
from replay.validate.workloads import WORKLOADS, Workload


@dataclass(frozen=True)
class Result:
    """All verdicts.

    missed: address spaces that could not be compared. notes: workload -> why it did not run, or did not test
    what it is for. status: exit status of the command; 0 for the built-in workloads. no_calls: why call
    counts were not compared; empty if they were.
    """

    verdicts: tuple[Verdict, ...]
    missed: dict[Missed, int]
    notes: dict[str, str]
    status: int
    no_calls: str = ""

    @property
    def agrees(self) -> bool:
        """Whether the kernel did what was predicted, but for differences whose cause is known."""
        return all(verdict.explained for verdict in self.verdicts)


def validate(
    argv: Sequence[str] | None = None,
    *,
    only: Sequence[str] | None = None,
    drain: bool | None = None,
    algorithm: str | None = None,
    progress: Callable[[Verdict], None] | None = None,
) -> Result:
    """Compare the replay with what this kernel does at each exit of a command, or of the built-in workloads.

    only: names of built-in workloads. drain: empty the LRU batches of all CPUs before each exit. None does so
    only where exit_mmap() drains the batch of its own CPU, because procfs does not show which folios wait
    there. Other kernels drain none, so each folio off the LRU is predicted to stay. algorithm: a name or
    definition of what this kernel does; None finds it out. progress: called with each verdict.

    Raises `ReplayError` with cause and remedy: no tracefs, no rights, lost trace events, no such command.
    """
    chosen = _choose(only)
    named = None if algorithm is None else variants.one(algorithm)
    verdicts: list[Verdict] = []
    missed: dict[Missed, int] = {}
    notes: dict[str, str] = {}
    status = 0
    with stop.interruptible(), watcher(named) as watching:
        drain = watching.algorithm.drains_lru if drain is None else drain
        if argv is not None:
            done = watch(watching, argv, argv[0], drain=drain, progress=progress)
            if not done.verdicts:
                why = ", ".join(done.missed) or "it executed no program"
                raise ReplayError(f"no exit of '{argv[0]}' could be compared: {why}: try another command")
            return Result(done.verdicts, done.missed, {}, done.status, watching.no_calls)
        for workload in chosen:
            try:
                done = _run(watching, workload, drain, progress)
            except UnavailableError as error:
                notes[workload.name] = str(error)
                continue
            verdicts += done.verdicts
            if workload.order is not None and not any(workload.order in v.orders for v in done.verdicts):
                notes[workload.name] = f"no folio of order {workload.order} came about: memory is fragmented"
            for cause, count in done.missed.items():
                missed[cause] = missed.get(cause, 0) + count
    return Result(tuple(verdicts), missed, notes, status, watching.no_calls)


def _choose(only: Sequence[str] | None) -> list[Workload]:
    names = [workload.name for workload in WORKLOADS]
    for name in only or ():
        if name not in names:
            raise UsageError(f"unknown workload '{name}': choose from {', '.join(names)}")
    return [workload for workload in WORKLOADS if only is None or workload.name in only]


def _run(
    watching: Watcher, workload: Workload, drain: bool, progress: Callable[[Verdict], None] | None
) -> Watched:
    """Run one workload with the settings that it needs, and put them back."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(workload_settings.thp(workload.thp))
        if workload.swap:
            stack.enter_context(workload_settings.swap_device())
        done = watch(watching, workload.argv, workload.name, ours=True, drain=drain, progress=progress)
    if done.status:
        raise ReplayError(
            f"workload '{workload.name}' failed with exit status {done.status}: see its message above"
        )
    return done
