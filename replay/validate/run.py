"""`replay validate`: a command, or the built-in workloads, under observation; the results as rows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from replay.capture import freeze
from replay.capture.follow import Missed
from replay.errors import ReplayError, UsageError
from replay.validate import settings
from replay.validate.settings import UnavailableError
from replay.validate.watch import Verdict, Watched, Watcher, watch, watcher
from replay.validate.workloads import WORKLOADS, Workload


@dataclass(frozen=True)
class Result:
    """All verdicts. missed: address spaces that could not be compared. skipped: workloads not run -> why.

    status: exit status of the command; 0 for the built-in workloads.
    """

    verdicts: tuple[Verdict, ...]
    missed: dict[Missed, int]
    skipped: dict[str, str]
    status: int

    @property
    def agrees(self) -> bool:
        """Whether the kernel did what was predicted, but for differences whose cause is known."""
        return all(verdict.comparison.explained for verdict in self.verdicts)


def validate(
    argv: Sequence[str] | None = None,
    *,
    only: Sequence[str] | None = None,
    drain: bool = False,
    progress: Callable[[Verdict], None] | None = None,
) -> Result:
    """Compare the replay with what this kernel does at each exit of a command, or of the built-in workloads.

    only: names of built-in workloads. drain: empty the LRU batches of all CPUs before each exit. progress:
    called with each verdict.

    Raises `ReplayError` with cause and remedy: no tracefs, no rights, lost trace events, no such command.
    """
    chosen = _choose(only)
    verdicts: list[Verdict] = []
    missed: dict[Missed, int] = {}
    skipped: dict[str, str] = {}
    status = 0
    with freeze.interruptible(), watcher() as watching:
        if argv is not None:
            done = watch(watching, argv, argv[0], drain=drain, progress=progress)
            return Result(done.verdicts, done.missed, {}, done.status)
        for workload in chosen:
            try:
                done = _run(watching, workload, drain, progress)
            except UnavailableError as error:
                skipped[workload.name] = str(error)
                continue
            verdicts += done.verdicts
            for cause, count in done.missed.items():
                missed[cause] = missed.get(cause, 0) + count
    return Result(tuple(verdicts), missed, skipped, status)


def _choose(only: Sequence[str] | None) -> list[Workload]:
    names = [workload.name for workload in WORKLOADS]
    for name in only or ():
        if name not in names:
            raise UsageError(f"unknown workload '{name}': choose from {', '.join(names)}")
    return [workload for workload in WORKLOADS if only is None or workload.name in only]


def _run(
    watching: Watcher, workload: Workload, drain: bool, progress: Callable[[Verdict], None] | None
) -> Watched:
    """Run one workload with the settings it needs; they are put back."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(settings.thp(workload.thp))
        if workload.swap:
            stack.enter_context(settings.swap_device())
        done = watch(watching, workload.argv, workload.name, ours=True, drain=drain, progress=progress)
    if done.status:
        raise ReplayError(
            f"workload {workload.name} failed with exit status {done.status}: see its message above"
        )
    return done
