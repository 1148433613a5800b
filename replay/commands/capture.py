# SPDX-License-Identifier: Apache-2.0
"""`replay capture`: the page tables of running processes become a trace."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from replay.commands import help
from replay.commands.naming import command_name, default_name, process_number, target, write_redacted
from replay.commands.options import Force, PagemapScan, Redact, output_option
from replay.commands.output import load_numpy, note, progress
from replay.commands.record import after_record
from replay.errors import ReplayError, UsageError

if TYPE_CHECKING:
    from replay.capture.live import Capture
    from replay.trace.metadata import Metadata


def capture(
    processes: Annotated[
        list[str] | None,
        typer.Argument(
            help="Processes. NAME is the name that ps shows (comm), or that of the file that was started. "
            "Only one process may have it.",
            metavar="PID|NAME...",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        output_option(
            "NAME in the default is the name of the process or cgroup, 'all', or 'N-processes'. PID is the "
            "number of the process; if there are several, that of replay."
        ),
    ] = None,
    cgroup: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Capture all processes of this cgroup and of those below it, frozen together.",
            rich_help_panel=help.CAPTURED,
        ),
    ] = None,
    everything: Annotated[
        bool,
        typer.Option("--all", help="Capture all processes, one by one.", rich_help_panel=help.CAPTURED),
    ] = False,
    at_exit: Annotated[
        bool,
        typer.Option(
            "--at-exit",
            help="Wait until the process exits, and capture it at its exit.",
            rich_help_panel=help.CAPTURED,
        ),
    ] = False,
    procfs: Annotated[
        Path,
        typer.Option(
            "--procfs",
            metavar="DIR",
            help="Read this procfs: /host/proc, or a saved copy.",
            rich_help_panel=help.HOW,
        ),
    ] = Path("/proc"),
    freeze: Annotated[
        bool,
        typer.Option(
            help="Hold the process still while it is read.", show_default="on", rich_help_panel=help.HOW
        ),
    ] = True,
    pagemap_scan: PagemapScan = True,
    redact: Redact = False,
    force: Force = False,
) -> None:
    """Capture the page tables of running processes into a trace.

    It needs root, because Linux shows page frames to nobody else. A saved copy (--procfs DIR) needs no root.

    \b
    Examples:
      replay capture 4711
      replay capture redis-server -o redis.parquet
      replay capture --cgroup system.slice/nginx.service
    """
    if bool(processes) + (cgroup is not None) + everything != 1:
        raise UsageError("give processes, --cgroup PATH or --all, and only one of these")
    pids = list(dict.fromkeys(process_number(procfs, word) for word in processes or []))
    pid = pids[0] if len(pids) == 1 else None
    if at_exit and pid is None:
        raise UsageError("--at-exit waits for one process: give its PID")
    if at_exit and (procfs != Path("/proc") or not freeze):
        raise UsageError(
            "--at-exit reads our own /proc and always holds the process: leave out --procfs and --no-freeze"
        )
    load_numpy()
    from replay.procfs.files import require_procfs

    if procfs == Path("/proc"):
        require_procfs()
    if len(pids) > 1 and not any((procfs / str(number)).exists() for number in pids):
        listed = ", ".join(map(str, pids))
        raise ReplayError(f"no processes {listed}: they have ended, or never were")
    path = output or default_name(*_subject(procfs, pids, cgroup), redact)
    written_to = target(path, redact, force)
    if at_exit and pid is not None:
        from replay.recording import recorder

        note(f"waiting for process {pid} to exit; Ctrl-C gives up and leaves it running")
        recorded = recorder.capture_at_exit(pid, written_to, force=force, use_scan=pagemap_scan)
        after_record(recorded, path, force)
        return
    from replay.capture import live

    with progress("pages" if pid is not None else "processes") as report:
        options: dict[str, Any] = {
            "procfs_root": procfs,
            "hold": freeze,
            "use_scan": pagemap_scan,
            "force": force,
            "progress": report,
        }
        if pid is not None:
            done = live.capture_process(pid, written_to, **options)
        elif pids:
            done = live.capture_processes(pids, written_to, **options)
        elif cgroup is not None:
            done = live.capture_cgroup(cgroup, written_to, **options)
        else:
            done = live.capture_all(written_to, **options)
    _after_capture(done, path, force)


def _subject(procfs: Path, pids: list[int], cgroup: str | None) -> tuple[str, int]:
    """The name of what is captured, and a PID: of one process its command and PID, else ours."""
    if len(pids) == 1:
        return command_name(procfs, pids[0]), pids[0]
    if pids:
        return f"{len(pids)}-processes", os.getpid()
    return (Path(cgroup).name if cgroup is not None else "all"), os.getpid()


def _held_for(meta: Metadata) -> str:
    """How long processes stood still, where that is known."""
    longest = max((space.held_ms for space in meta.address_spaces), default=0.0)
    if not longest:
        return ""
    return f"; held for {longest:,.0f} ms{' at most' if len(meta.address_spaces) > 1 else ''}"


def _after_capture(done: Capture, path: Path, force: bool) -> None:
    from replay.capture import rss
    from replay.report import notes

    write_redacted(done.trace, path, force)
    spaces = done.meta.address_spaces
    differing = 0
    for space, figures in zip(spaces, done.figures, strict=True):
        lines = rss.text(figures, done.meta.page_size)
        if len(spaces) == 1:
            note(*lines)
        elif len(lines) > 1:
            differing += 1
            note(*(f"{space.comm} ({space.pid}): {line}" for line in lines))
    if len(spaces) > 1:
        others = f"; {differing:,} differ, as said above" if differing else ""
        agree = "all as" if not differing else f"{len(spaces) - differing:,} as"
        note(f"captured {len(spaces):,} address spaces, {agree} /proc/PID/status says{others}")
    note(*(f"not captured: {line}" for line in done.refused))
    if done.vanished:
        gone = (
            "1 process: it has ended, or never was"
            if done.vanished == 1
            else f"{done.vanished:,} processes: they have ended, or never were"
        )
        note(f"not captured: {gone}")
    note(*notes.limits(done.meta), *notes.markers(done.meta))
    note(f"wrote {path}: {done.extents:,} extents{_held_for(done.meta)}")
    note(f"next: replay run {shlex.quote(str(path))}")
