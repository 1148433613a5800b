"""The commands: parse, call, print. Data go to standard output, everything else to standard error."""

from __future__ import annotations

import contextlib
import gc
import os
import shlex
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

import replay
from replay.errors import ReplayError, UsageError
from replay.report.text import printable

if TYPE_CHECKING:
    import polars as pl

    from replay.capture.exits import Recorded
    from replay.capture.live import Capture
    from replay.trace.frame import Trace

app = typer.Typer(
    help="How Linux tears down a process's memory, replayed over page tables of real processes.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Of malloc.h."""

COLLECT_AFTER: Final = 100_000
"""Objects made between two searches for garbage: what is loaded at the start is none."""


WIDE: Final = 400
"""Columns that are room enough for any table."""

HEIGHT: Final = 25
"""Nothing depends on it, but only with one does rich take the width of a dumb terminal as it is given."""


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"replay {replay.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_say_version, help="Show the version and end."),
    ] = False,
) -> None:
    """Options without a command."""


class Shape(StrEnum):
    """How results are shown on standard output."""

    TABLE = "table"
    CSV = "csv"
    JSON = "json"


class Per(StrEnum):
    """What one comparison stands for."""

    TOTAL = "total"
    TRACE = "trace"
    MM = "mm"


def main() -> None:
    """Run the command line, and end the process.

    It ends at once: to unload pyarrow, polars and numba would take longer than many a command.
    """
    gc.set_threshold(COLLECT_AFTER)
    _open_streams()
    status = _status()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        pass
    except OSError as error:
        note(f"replay: cannot write to standard output: {error.strerror}")
        status = 1
    sys.stderr.flush()
    os._exit(status)


def _open_streams() -> None:
    """Put the null device where a standard stream is closed, for ourselves: commands find it closed."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            setattr(sys, name, os.fdopen(fd, "w" if fd else "r"))


def _status() -> int:
    """Run the command; the only place that turns errors into messages and exit statuses."""
    try:
        app()
    except SystemExit as ended:
        if isinstance(ended.code, str):
            note(ended.code)
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except ReplayError as error:
        note(f"replay: {error}")
        return error.status
    except KeyboardInterrupt:
        note("replay: interrupted")
        return 130
    except BrokenPipeError:
        # whoever read our output has what it wanted; nothing may be flushed to the closed pipe at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        name = f" {error.filename}" if error.filename else ""
        note(f"replay: cannot go on:{name} {error.strerror or error}")
        return 1
    return 0


def note(*lines: str) -> None:
    """Lines for people, on standard error."""
    for line in lines:
        typer.echo(printable(line), err=True)


def load_numpy() -> None:
    """Load NumPy, with one arena of memory, without the threads of its BLAS, which at first just spin.

    The environment stays as it is: recorded commands inherit it.
    """
    name = "OPENBLAS_NUM_THREADS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    import numpy  # noqa: F401

    del os.environ[name]
    if before is not None:
        os.environ[name] = before
    _tune_malloc()


def _tune_malloc() -> None:
    """Memory that is freed serves again, and any thread; given back, it would have to be cleared anew."""
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        for parameter, value in ((M_ARENA_MAX, 1), (M_MMAP_THRESHOLD, 32 << 20), (M_TRIM_THRESHOLD, 1 << 30)):
            mallopt(parameter, value)


# ---------------------------------------------------------------------- capture


Output = Annotated[
    Path | None, typer.Option("-o", "--output", help="The trace; default replay-COMM-PID-UTC.parquet here.")
]
Force = Annotated[bool, typer.Option("-f", "--force", help="Overwrite an existing trace.")]
Redact = Annotated[
    bool,
    typer.Option("--redact", help="Replace names and paths, renumber page frames; counts stay the same."),
]
PagemapScan = Annotated[
    bool,
    typer.Option(
        "--pagemap-scan/--no-pagemap-scan",
        help="Use PAGEMAP_SCAN where there is one (without, zero pages of VMAs above 16 GiB are left out).",
    ),
]


@app.command()
def capture(
    pid: Annotated[int | None, typer.Argument(help="The process.", metavar="PID", show_default=False)] = None,
    output: Output = None,
    cgroup: Annotated[
        str | None, typer.Option(help="All processes of a cgroup and those below it, frozen together.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All processes, held one by one.")] = False,
    at_exit: Annotated[
        bool, typer.Option("--at-exit", help="Wait until the process exits, and capture it there.")
    ] = False,
    procfs: Annotated[
        Path, typer.Option("--procfs", help="A procfs tree elsewhere: /host/proc, or a saved one.")
    ] = Path("/proc"),
    freeze: Annotated[bool, typer.Option(help="Hold the process still while it is read.")] = True,
    pagemap_scan: PagemapScan = True,
    redact: Redact = False,
    force: Force = False,
) -> None:
    """Capture the page tables of running processes into a trace."""
    if (pid is not None) + (cgroup is not None) + everything != 1:
        raise UsageError("name a PID, --cgroup PATH or --all: one of them")
    if at_exit and pid is None:
        raise UsageError("--at-exit waits for one process: name its PID")
    if at_exit and (procfs != Path("/proc") or not freeze):
        raise UsageError("--at-exit is for processes of our own /proc, which stand still there in any case")
    load_numpy()
    path = output or _default_name(*_subject(procfs, pid, cgroup))
    target = _target(path, redact, force)
    if at_exit and pid is not None:
        from replay.capture import exits

        note(f"waiting for process {pid} to exit; Ctrl-C gives up and leaves it running")
        recorded = exits.capture_at_exit(pid, target, force=force, use_scan=pagemap_scan)
        _after_record(recorded, path, force)
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
            done = live.capture_process(pid, target, **options)
        elif cgroup is not None:
            done = live.capture_cgroup(cgroup, target, **options)
        else:
            done = live.capture_all(target, **options)
    _after_capture(done, path, force)


def _subject(procfs: Path, pid: int | None, cgroup: str | None) -> tuple[str, int]:
    """What a capture is named after: a command's name and PID, a cgroup or all processes and our PID."""
    if pid is not None:
        return _comm(procfs, pid), pid
    return (Path(cgroup).name if cgroup is not None else "all"), os.getpid()


def _target(path: Path, redact: bool, force: bool) -> Path | None:
    """Where capture writes to: nowhere, if the rows are to be redacted first."""
    from replay.trace.whole import whole_file

    whole_file(path, force=force)
    return None if redact else path


def _write_redacted(trace: Trace | None, path: Path, force: bool) -> None:
    if trace is not None:
        from replay.trace.redact import redact

        redact(trace).write(path, force=force)


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def record(
    command: Annotated[
        list[str],
        typer.Argument(help="The command and its arguments.", metavar="-- CMD ARGS...", show_default=False),
    ],
    output: Output = None,
    pagemap_scan: PagemapScan = True,
    redact: Redact = False,
    force: Force = False,
) -> None:
    """Run a command and capture each of its processes at its exit, into one trace.

    The command behaves as without replay, and its exit status is that of this command.
    """
    load_numpy()
    from replay.capture import exits

    path = output or _default_name(Path(command[0]).name, os.getpid())
    recorded = exits.record(command, _target(path, redact, force), force=force, use_scan=pagemap_scan)
    _after_record(recorded, path, force)
    if recorded.killed_by:
        _end_by(recorded.killed_by)
    sys.exit(recorded.status)


def _end_by(number: int) -> None:
    """End by the signal that ended the command, for who tells that from an exit status, as shells do."""
    import resource
    import signal

    sys.stdout.flush()
    sys.stderr.flush()
    # the command's memory is what somebody may want to see, not ours
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
    os.kill(os.getpid(), number)


def _after_record(recorded: Recorded, path: Path, force: bool) -> None:
    from replay.report import notes

    _write_redacted(recorded.trace, path, force)
    for missed, count in recorded.missed.items():
        note(f"not recorded: {count:,} {missed.value}")
    if recorded.replaced:
        note(f"not recorded: {recorded.replaced:,} torn down by exec, where nothing can stop before")
    note(*notes.limits(recorded.meta))
    note(f"wrote {path}: {notes.spaces(len(recorded.meta.address_spaces))}, {recorded.extents:,} extents")
    note(f"next: replay run {shlex.quote(str(path))}")


def _comm(procfs: Path, pid: int) -> str:
    try:
        return (procfs / str(pid) / "comm").read_text(errors="replace").strip()
    except OSError:
        return "process"


def _default_name(comm: str, pid: int) -> Path:
    import datetime

    safe = "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in comm)
    return Path(f"replay-{safe}-{pid}-{datetime.datetime.now(datetime.UTC):%Y%m%dT%H%M%SZ}.parquet")


def _after_capture(done: Capture, path: Path, force: bool) -> None:
    from replay.capture import reconcile
    from replay.report import notes

    _write_redacted(done.trace, path, force)
    spaces = done.meta.address_spaces
    for space, figures in zip(spaces, done.figures, strict=True):
        lines = reconcile.text(figures, done.meta.page_size)
        if len(spaces) == 1:
            note(*lines)
        elif len(lines) > 1:
            note(*(f"{space.comm} ({space.pid}): {line}" for line in lines))
    if len(spaces) > 1:
        note(f"captured {len(spaces):,} processes; those not named above: as /proc/PID/status says")
    note(*(f"not captured: {line}" for line in done.refused))
    if done.vanished:
        note(f"not captured: {done.vanished:,} that ended before they could be read")
    note(*notes.limits(done.meta))
    note(f"wrote {path}: {done.extents:,} extents")
    note(f"next: replay run {shlex.quote(str(path))}")


@contextlib.contextmanager
def progress(unit: str) -> Iterator[Any]:
    """A progress bar on a terminal, from one second on; yields a function of (done, total), or None."""
    if not sys.stderr.isatty():
        yield None
        return
    import time

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    began = time.monotonic()
    bar = Progress(
        TextColumn("{task.fields[unit]}"), BarColumn(), MofNCompleteColumn(), console=Console(stderr=True)
    )
    task = bar.add_task("", unit=unit, total=None)

    def report(done: int, total: int | None) -> None:
        if time.monotonic() - began > 1:
            bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield report
    finally:
        bar.stop()


# ---------------------------------------------------------------------- run


@app.command()
def run(
    traces: Annotated[
        list[Path],
        typer.Argument(
            help="Traces made by capture or record.", metavar="TRACE...", show_default=False, readable=False
        ),
    ],
    algorithms: Annotated[
        list[str] | None,
        typer.Option("-a", "--algorithms", help="Which, separated by commas or repeated; default all."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write all counters: .csv, .json or .parquet.")
    ] = None,
    shape: Annotated[
        Shape | None,
        typer.Option("--format", help="On standard output; default table on a terminal, else csv."),
    ] = None,
    per: Annotated[
        Per | None,
        typer.Option(
            help="What one comparison stands for: all, a trace, an address space; default: total in the "
            "table, else mm."
        ),
    ] = None,
    page_tables: Annotated[
        str | None,
        typer.Option(
            help="Where page-table pages go: 'gather' (x86 up to v6.13) or 'rcu' (arm64, x86 from v6.14, "
            "paravirtualised guests); default by the trace's architecture."
        ),
    ] = None,
) -> None:
    """Replay the teardown algorithms over traces and compare them with the baseline.

    On a terminal: a table. To a pipe, or with -o: every counter, of each address space or as --per says.
    """
    load_numpy()
    from replay.report import files
    from replay.teardown import algorithms as known

    if output is not None:
        files.check_target(output, traces)
    if page_tables not in (None, "gather", "rcu"):
        raise UsageError(f"--page-tables is 'gather' or 'rcu', not '{page_tables}'")
    names = None if algorithms is None else _names(",".join(algorithms))
    known.select(names)
    in_gather = None if page_tables is None else page_tables == "gather"

    from replay.trace import file

    loaded = file.read_all(traces)
    results = _replay(loaded, names, in_gather)
    if shape is None and output is None:
        shape = Shape.TABLE if sys.stdout.isatty() else Shape.CSV
    _show_results(loaded, results, names, output, shape, per)


def _names(text: str) -> list[str]:
    """Names separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _replay(traces: list[Trace], names: list[str] | None, in_gather: bool | None) -> pl.DataFrame:
    import polars as pl

    from replay.teardown import algorithms, replayer

    wanted = None if names is None else [algorithms.BASELINE, *names]
    return pl.concat(
        [replayer.run_checked(trace, wanted, page_tables_in_gather=in_gather) for trace in traces]
    )


def _show_results(
    traces: list[Trace],
    results: pl.DataFrame,
    names: list[str] | None,
    output: Path | None,
    shape: Shape | None,
    per: Per | None,
) -> None:
    import polars as pl

    from replay.report import compare, files, notes, terminal
    from replay.teardown.counters import CHECKS

    def compared(per: Per) -> pl.DataFrame:
        keys = {Per.TOTAL: [], Per.TRACE: ["trace"], Per.MM: list(compare.KEYS)}[per]
        rows = results.drop(list(CHECKS)) if per is Per.MM else compare.total(results, keys)
        frame = compare.compare(rows, keys)
        return frame if names is None else frame.filter(pl.col("algorithm").is_in(names))

    if output is not None:
        full = compared(per or Per.MM)
        files.write(full, output)
        note(f"wrote {output}: {len(full):,} rows")
    if shape is Shape.TABLE:
        frame = compared(per or Per.TOTAL)
        keys = [name for name in compare.KEYS if name in frame.columns]
        blocks = frame.partition_by(keys, maintain_order=True) if keys else [frame]
        width = _width()
        _print(
            [
                terminal.comparison(block, notes.title(block, traces), width)
                for block in blocks
                if not block.is_empty()
            ],
            width,
        )
    elif shape is not None:
        sys.stdout.write(files.text(compared(per or Per.MM), files.Format(shape.value)))
    for trace in traces:
        note(*notes.limits(trace.meta))
        if not trace.meta.address_spaces:
            note(f"note: {trace.name} holds no address space")
    shown = results if names is None else results.filter(pl.col("algorithm").is_in(names))
    note(*notes.bugs(shown))


def _width() -> int:
    """Columns of the terminal; without one, as many as a table takes."""
    import shutil

    # not rich's width: a terminal of TERM=dumb has 80 columns to it
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDE


def _print(renderables: list[Any], width: int) -> None:
    """Print as it is what may hold names of anybody."""
    from rich.console import Console

    console = Console(width=width, height=HEIGHT, markup=False, emoji=False, highlight=False)
    for renderable in renderables:
        console.print(renderable)


# ---------------------------------------------------------------------- inspect, algorithms


@app.command()
def inspect(
    trace: Annotated[
        Path, typer.Argument(help="A trace.", metavar="TRACE", show_default=False, readable=False)
    ],
    vmas: Annotated[int, typer.Option(help="How many VMAs to list.", min=0)] = 20,
    json: Annotated[bool, typer.Option("--json", help="All of it as JSON.")] = False,
) -> None:
    """Show what a trace maps: kinds, folio orders, sharing, VMAs."""
    load_numpy()
    from replay.report import inspect as report
    from replay.report import notes, terminal
    from replay.trace.file import read

    loaded = read(trace)
    rows = report.classified(loaded)
    if json:
        typer.echo(report.as_json(loaded, rows))
        return
    for line in report.header(loaded):
        typer.echo(printable(line))
    width = _width()
    _print(list(terminal.inspection(loaded, rows, vmas, width)), width)
    note(*notes.limits(loaded.meta))


@app.command()
def algorithms(
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """List the algorithms with their sources, and what is not modelled."""
    from replay.report import catalogue

    typer.echo(catalogue.as_json() if json else catalogue.as_text())


# ---------------------------------------------------------------------- validate, doctor


VERDICT_COLUMNS = (
    *("workload", "pid", "comm", "spaces", "exact", "predicted", "observed", "prefix", "causes", "calls"),
)


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def validate(
    command: Annotated[
        list[str] | None,
        typer.Argument(help="A command; without one, built-in workloads.", metavar="[-- CMD ARGS...]"),
    ] = None,
    only: Annotated[str | None, typer.Option(help="Built-in workloads, separated by commas.")] = None,
    drain: Annotated[
        bool, typer.Option(help="Empty the LRU batches of all CPUs first: they hold references unseen.")
    ] = True,
    json: Annotated[bool, typer.Option("--json", help="Every exit with every difference, as JSON.")] = False,
    every: Annotated[
        bool, typer.Option("--every", help="A row for each exit, not for each workload.")
    ] = False,
) -> None:
    """Check the replay against the running kernel: the folios that it frees at each exit, in order.

    Where the kernel has kprobe events, the counts of its calls are compared as well. Exit status 3 if it
    frees other folios, or in another order, or makes more or fewer calls, without a known cause.
    """
    if command and only is not None:
        raise UsageError("--only chooses among the built-in workloads: name them or a command")
    load_numpy()
    from replay.report import terminal, verdicts
    from replay.validate.run import validate as observe

    with progress("exits") as report:
        seen = 0

        def count(_: Any) -> None:
            nonlocal seen
            seen += 1
            if report:
                report(seen, None)

        result = observe(command, only=None if only is None else _names(only), drain=drain, progress=count)
    if json:
        typer.echo(verdicts.as_json(result))
    else:
        table = verdicts.frame(result) if every else verdicts.summary(result)
        columns = [name for name in VERDICT_COLUMNS if name in table.columns]
        if result.no_calls:
            columns.remove("calls")
        table = table.select(columns)
        width = _width()
        _print([terminal.plain(table, "Folios freed at exit", width)], width)
    for name, why in result.notes.items():
        note(f"{name}: {why}")
    for missed, missing in result.missed.items():
        note(f"not compared: {missing:,} {missed.value}")
    if result.no_calls:
        note(f"call counts were not compared: {result.no_calls}")
    note(verdicts.conclusion(result))
    if not result.agrees:
        sys.exit(3)


@app.command()
def doctor(json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """Say what works on this machine, and how to get what does not."""
    from replay import doctor as examination

    checks = list(examination.examine())
    if json:
        import json as encoder

        typer.echo(encoder.dumps([check._asdict() for check in checks], indent=1))
    else:
        typer.echo(examination.machine())
        for check in checks:
            typer.echo(f"{check.state:8}{check.name:14}{check.found}")
            if check.remedy and check.state != examination.State.WORKS:
                typer.echo(f"{'':22}-> {check.remedy}")
    if any(check.state == examination.State.FAILS for check in checks):
        sys.exit(1)


if __name__ == "__main__":
    main()
