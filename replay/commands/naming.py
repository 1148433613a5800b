# SPDX-License-Identifier: Apache-2.0
"""Where a trace is written: its default name, what must hold before the work, the redacted form."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from replay.errors import ReplayError, UsageError

if TYPE_CHECKING:
    from replay.trace.frame import Trace


ENDING: Final = ".parquet"
"""How the name of a trace ends."""


def check_target(path: Path, force: bool) -> None:
    """Raise, before any work is done, if a trace cannot be written there.

    Raises `UsageError` for a name that does not end as one of a Parquet file, `ReplayError` as `atomic_file`.
    """
    from replay.support.atomic_file import atomic_file

    if path.suffix.lower() != ENDING:
        raise UsageError(f"a trace is a Parquet file: let the name '{path}' end in {ENDING}")
    atomic_file(path, force=force)


def target(path: Path, redact: bool, force: bool) -> Path | None:
    """Where capture writes to: None if the rows must be redacted first. Raises as `check_target`."""
    check_target(path, force)
    return None if redact else path


def write_redacted(trace: Trace | None, path: Path, force: bool) -> None:
    if trace is not None:
        from replay.trace.redact import redact

        redact(trace).write(path, force=force)


def command_name(procfs: Path, pid: int) -> str:
    try:
        return (procfs / str(pid) / "comm").read_text(errors="replace").strip()
    except OSError:
        return "process"


def default_name(comm: str, pid: int, redacted: bool = False) -> Path:
    """The default name of a trace in the current folder. The name of a redacted one does not say what it is
    of.
    """
    import datetime

    safe = "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in comm)
    now = datetime.datetime.now(datetime.UTC)
    if redacted:
        return Path(f"replay-redacted-{now:%Y%m%d}-{os.urandom(3).hex()}.parquet")
    return Path(f"replay-{safe}-{pid}-{now:%Y%m%dT%H%M%SZ}.parquet")


COMM_LENGTH = 15
"""Letters of a command's name that the kernel keeps: TASK_COMM_LEN without the final zero."""
MOST_PIDS = 20
"""How many PIDs an error lists when several processes have the name."""


def process_number(procfs: Path, text: str) -> int:
    """A PID, or the PID of the only process with a name (its comm, or the file that it was started from).

    Raises `ReplayError` if no process has the name, or several have it.
    """
    if text.isascii() and text.isdigit():
        return int(text)
    found = sorted(
        int(folder.name)
        for folder in procfs.glob("[0-9]*")
        if folder.name.isdigit() and _is_called(folder, text)
    )
    if len(found) == 1:
        return found[0]
    if not found:
        raise ReplayError(f"no process is called '{text}': 'ps -e' lists the names")
    listed = ", ".join(map(str, found[:MOST_PIDS])) + (", ..." if len(found) > MOST_PIDS else "")
    raise ReplayError(f"{len(found)} processes are called '{text}': give one PID of {listed}")


def _is_called(folder: Path, name: str) -> bool:
    """Whether a process has this name. This command itself and processes that have ended do not count."""
    if int(folder.name) == os.getpid():
        return False
    try:
        comm = (folder / "comm").read_text(errors="replace").rstrip("\n")
        started_as = (folder / "cmdline").read_bytes().partition(b"\0")[0]
        ended = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[0] in "ZX"
    except (OSError, IndexError):
        return False
    file = os.fsdecode(started_as).rpartition("/")[2]
    # the kernel keeps only the beginning of a longer name, and other names may begin alike
    kept = comm == name if len(name) <= COMM_LENGTH else False
    return not ended and (kept or file == name)
