# SPDX-License-Identifier: Apache-2.0
"""`replay record`: every process of a command, captured as it exits."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from replay.commands import help
from replay.commands.naming import default_name, target, write_redacted
from replay.commands.options import Force, PagemapScan, Redact, output_option
from replay.commands.output import load_numpy, note

if TYPE_CHECKING:
    from replay.recording.recorder import Recorded


def record(
    command: Annotated[
        list[str],
        typer.Argument(help="A command and its arguments.", metavar="-- CMD ARGS...", show_default=False),
    ],
    output: Annotated[
        Path | None, output_option("NAME in the default is that of the command, PID that of replay.")
    ] = None,
    pagemap_scan: PagemapScan = True,
    execs: Annotated[
        bool,
        typer.Option(
            "--exec/--no-exec",
            help="Capture also the address spaces that an exec replaces.",
            show_default="on",
            rich_help_panel=help.CAPTURED,
        ),
    ] = True,
    redact: Redact = False,
    force: Force = False,
) -> None:
    """Run a command and capture each of its processes as it exits.

    It needs root. All processes go into one trace. An address space that an exec replaces is captured too,
    for example the copy of a shell that fork made.

    \b
    Examples:
      replay record -- make -j2
      replay record -o tests.parquet -- python -m pytest

    The exit status is that of the command. As in a shell it is 127 if there is no such command, and 126 if
    the command cannot be executed.

    The command runs as without replay, but slower. It can notice replay by TracerPid, Seccomp and
    Seccomp_filters in /proc/PID/status, and SECCOMP_MODE_STRICT fails. If the command traces one of its
    processes (strace, gdb), that process is not captured. In such a process, and in one that outlives the
    recording, the seccomp filter stays: PTRACE_TRACEME, ATTACH and SEIZE, and clone with CLONE_UNTRACED, fail
    with ENOSYS.
    """
    load_numpy()
    from replay.recording import recorder

    path = output or default_name(Path(command[0]).name, os.getpid(), redact)
    recorded = recorder.record(
        command, target(path, redact, force), force=force, use_scan=pagemap_scan, execs=execs
    )
    after_record(recorded, path, force)
    if recorded.killed_by:
        _end_by(recorded.killed_by)
    sys.exit(recorded.status)


def _end_by(number: int) -> None:
    """End by the signal that ended the command, so that a caller sees the same status as from the command."""
    import resource
    import signal

    sys.stdout.flush()
    sys.stderr.flush()
    # no core file of replay: the command may have left one of its own
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
    os.kill(os.getpid(), number)


def after_record(recorded: Recorded, path: Path, force: bool) -> None:
    from replay.report import notes

    write_redacted(recorded.trace, path, force)
    for missed, count in recorded.missed.items():
        note(f"not recorded: {count:,} {missed.value}")
    if recorded.replaced:
        note(f"not recorded: {notes.spaces(recorded.replaced)} that an exec replaced: {recorded.no_execs}")
    note(*notes.limits(recorded.meta), *notes.differing(recorded.meta), *notes.markers(recorded.meta))
    spaces = notes.spaces(recorded.recorded)
    if recorded.execs:
        spaces += f": {recorded.recorded - recorded.execs:,} exits, {recorded.execs:,} execs"
    note(f"wrote {path}: {spaces}; {recorded.extents:,} extents")
    note(f"next: replay run {shlex.quote(str(path))}")
