# SPDX-License-Identifier: Apache-2.0
"""`replay run`: the teardown algorithms over traces, compared."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from replay.commands import help
from replay.commands.options import Per, Shape
from replay.commands.output import load_numpy, note, show, show_markdown, width
from replay.commands.ranking import Pids, Sort, Top, of_pids, ranking, sheets
from replay.commands.whatif import WhatIfOrders, run_what_if
from replay.errors import ReplayError, UsageError

if TYPE_CHECKING:
    import polars as pl

    from replay.cost.calibration import Calibration
    from replay.teardown.algorithms import Algorithm
    from replay.teardown.replayer import Replayed
    from replay.trace.frame import Trace

DIFFERENT = 3
"""Exit status where machine and reference count differently."""


def run(
    traces: Annotated[
        list[Path],
        typer.Argument(
            help="Traces, or the folder that 'replay sweep' wrote.",
            metavar="TRACE...",
            show_default=False,
        ),
    ],
    algorithms: Annotated[
        list[str] | None,
        typer.Option(
            "-a",
            "--algorithms",
            metavar="NAME,...",
            help="Algorithms to replay. Changed parameters follow a name: 'v2,bundle=8'. A .toml file has a "
            'table for each algorithm: [mine], base = "mainline", release_batch = 15. Repeatable. See '
            "'replay algorithms'.",
            show_default="all",
            rich_help_panel=help.ALGORITHMS,
        ),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PARAMETER=VALUE,...",
            help="Replay each algorithm of -a once for each value; without -a, mainline. Repeatable.",
            rich_help_panel=help.ALGORITHMS,
        ),
    ] = None,
    baseline: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Show every change against this algorithm.",
            rich_help_panel=help.ALGORITHMS,
        ),
    ] = "baseline",
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Write all counters to this file: .csv, .json or .parquet. An existing file is replaced, "
            "without --force.",
            rich_help_panel=help.OUTPUT,
        ),
    ] = None,
    shape: Annotated[
        Shape | None,
        typer.Option(
            "--format",
            help="What to print.",
            show_default="table on a terminal, else csv",
            rich_help_panel=help.OUTPUT,
        ),
    ] = None,
    per: Annotated[
        Per | None,
        typer.Option(
            help="Compare the sum of all traces, each trace, or each address space (mm).",
            show_default="total in a table, else mm",
            rich_help_panel=help.COMPARED,
        ),
    ] = None,
    partial: Annotated[
        bool,
        typer.Option(
            "--partial",
            help="Count traces that lack rows. Without this they are refused.",
            rich_help_panel=help.COMPARED,
        ),
    ] = False,
    page_tables: Annotated[
        str | None,
        typer.Option(
            metavar="gather|rcu",
            help="Free page-table pages through the gather or by RCU, in every algorithm.",
            show_default="as each algorithm does; on arm64 by RCU",
            rich_help_panel=help.ALGORITHMS,
        ),
    ] = None,
    what_if: WhatIfOrders = None,
    sort: Sort = None,
    top: Top = None,
    pid: Pids = None,
    together: Annotated[
        bool,
        typer.Option(
            "--together",
            help="Tear down the address spaces one after the other, by PID: the last one that maps a page "
            "frees it. Without this, each is torn down as if the others stayed. It changes nothing in a "
            "trace that was captured at exits: there each address space is as the exits before left it.",
            rich_help_panel=help.COMPARED,
        ),
    ] = False,
    order: Annotated[
        str | None,
        typer.Option(
            metavar="PID,...",
            help="With --together: the order of exits, not of folios. These processes exit first.",
            rich_help_panel=help.COMPARED,
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Count with the literal reference too, on a sample of a large trace. Exit status 3 if any "
            "counter differs.",
        ),
    ] = False,
    time: Annotated[
        bool,
        typer.Option(
            "--time",
            help="Estimate teardown times in ms, with the costs that 'replay calibrate' measured.",
            rich_help_panel=help.WHAT_IF_AND_TIME,
        ),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "-v",
            "--verbose",
            help="Say at the end how much memory the replay took at most.",
            rich_help_panel=help.OUTPUT,
        ),
    ] = False,
    csv_safe: Annotated[
        bool,
        typer.Option(
            "--csv-safe",
            help="Put an apostrophe before names that a spreadsheet would take for a formula (=, +, -, @).",
            rich_help_panel=help.OUTPUT,
        ),
    ] = False,
) -> None:
    """Replay the teardown algorithms over traces and compare them.

    On a terminal this prints a table of the main counters. To a pipe, or with -o, it gives every counter of
    each address space.

    \b
    Examples:
      replay run T.parquet
      replay run T.parquet -a v2,mainline --baseline v6.12
      replay run T.parquet --per mm --sort locks --top 5
      replay run T.parquet -a 'mainline,release_batch=63,name=big' -o out.csv
    """
    load_numpy()
    from replay.report import files
    from replay.teardown import variants

    if output is not None:
        files.check_target(output, traces)
    if order is not None and not together:
        raise UsageError("--order says in what order processes exit one after the other: add --together")
    exits = None if order is None else _pids(order)
    if shape is None and output is None:
        shape = Shape.TABLE if sys.stdout.isatty() else Shape.CSV
    if csv_safe and shape is not Shape.CSV and (output is None or output.suffix.lower() != ".csv"):
        raise UsageError("--csv-safe changes only CSV: add --format csv, or -o FILE.csv")
    ranked = ranking(sort, top, table=per is Per.MM and shape in (Shape.TABLE, Shape.MD))
    for text in [*(algorithms or []), *(values.partition("=")[2] for values in vary or [])]:
        names_of(text)
    if any(path.is_dir() for path in traces):
        if what_if is not None or together or check or time or partial or page_tables:
            raise UsageError(
                "the parts of a sweep are counts already: leave out --what-if, --together, --check, --time, "
                "--partial and --page-tables, or name the traces"
            )
        results, names = _swept(traces, algorithms, vary, baseline)
        _show_results([], of_pids(results, pid), names, baseline, output, shape, per, csv_safe, *ranked)
        if verbose:
            note(_peak_memory())
        return
    wanted = _wanted(algorithms, vary, page_tables)
    base = variants.chosen(variants.one(baseline, {one.name: one for one in wanted}), page_tables)[0]
    replayed = wanted if base.name in {one.name for one in wanted} else [base, *wanted]

    from replay.trace import file

    names = None if algorithms is None and vary is None else [one.name for one in wanted]
    if what_if is not None:
        if together or check or time or pid:
            raise UsageError("--what-if goes without --together, --check, --time and --pid")
        loaded = file.read_all(traces, partial=partial)
        run_what_if(loaded, what_if, replayed, names, base.name, output, shape, per, csv_safe)
        return
    costs = _costs() if time else None
    found = _replay(traces, replayed, partial, together, exits)
    loaded = [one.trace for one in found]
    results = of_pids(_results(found), pid)
    if costs:
        note(*_add_time(found, results, base.name, costs))
    _show_results(loaded, results, names, base.name, output, shape, per, csv_safe, *ranked)
    if together:
        note(*_without_effect(loaded, exits))
    else:
        _note_shared(traces, found)
    if check:
        _check(file.read_all(traces, partial=partial), replayed)
    if verbose:
        note(_peak_memory())


def names_of(text: str) -> list[str]:
    """Names or values separated by commas. Raises `UsageError` if one of several is empty."""
    names = [name.strip() for name in text.split(",")]
    if names == [""]:
        return []
    if not all(names):
        raise UsageError(f"'{text}' has an empty value between its commas: fill it in, or leave a comma out")
    return names


def _pids(text: str) -> list[int]:
    names = names_of(text)
    if not names or not all(name.isascii() and name.isdigit() and len(name) < 10 for name in names):
        raise UsageError(f"--order takes process numbers separated by commas, not '{text}'")
    if len(set(names)) < len(names):
        raise UsageError("--order names a process twice: name it once")
    return [int(name) for name in names]


def _wanted(algorithms: list[str] | None, vary: list[str] | None, page_tables: str | None) -> list[Algorithm]:
    """The algorithms that the options name."""
    from replay.teardown import variants

    if not vary:
        return variants.chosen(algorithms, page_tables)
    named = variants.chosen(algorithms or "mainline")
    return variants.chosen(variants.vary(named, vary), page_tables)


def _replay(
    paths: list[Path],
    algorithms: list[Algorithm],
    partial: bool,
    together: bool,
    order: Sequence[int] | None,
) -> list[Replayed]:
    """Each trace, replayed while it is read; those that are torn down together are read first."""
    from replay.teardown import replayer
    from replay.trace import file

    found = []
    for path, name in zip(paths, file.names(paths), strict=True):
        if together:
            trace = dataclasses.replace(file.read(path, partial=partial), name=name)
            _check_order(trace, order or ())
            results = replayer.run_checked(trace, algorithms, together=True, order=order)
            found.append(replayer.Replayed(trace, results, None))
        else:
            found.append(replayer.replayed_file(path, algorithms, partial=partial, name=name))
    return found


def _check_order(trace: Trace, order: Sequence[int]) -> None:
    """Raise `ReplayError` if --order names a process that the trace does not have."""
    unknown = set(order) - {space.pid for space in trace.meta.address_spaces}
    if unknown:
        raise ReplayError(
            f"--order names process {min(unknown)}, which '{trace.name}' does not have: 'replay inspect "
            "--json' lists all"
        )


def _without_effect(traces: Sequence[Trace], order: Sequence[int] | None) -> list[str]:
    """A note for each trace in which --together, and --order if it is given, change nothing."""
    options = "--together changes" if order is None else "--together and --order change"
    return [
        f"note: '{trace.name}' was captured at its exits, one after the other: {options} nothing"
        for trace in traces
        if trace.meta.mode != "live"
    ]


def _results(found: list[Replayed]) -> pl.DataFrame:
    import polars as pl

    return pl.concat([one.results for one in found])


def _note_shared(paths: list[Path], found: list[Replayed]) -> None:
    """Say that address spaces share anonymous pages; where they may, the rows are read once more."""
    import polars as pl

    from replay.report import notes
    from replay.teardown import layout
    from replay.trace import file
    from replay.trace.columns import BATCH_ROWS

    for path, one in zip(paths, found, strict=False):
        if one.figures is None or int(one.figures[:, layout.SHARED_ANON].sum()) < 2:
            continue
        with file.opened(path) as stream:
            frames = (
                pl.DataFrame(pl.from_arrow(batch))
                for batch in stream.batches(notes.SHARED_COLUMNS, BATCH_ROWS)
            )
            note(*notes.shared_anon(one.trace, frames))


def _peak_memory() -> str:
    """The most memory that this process has used so far."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"peak memory: {peak / 1024:,.0f} MiB"


def _swept(
    folders: list[Path], algorithms: list[str] | None, vary: list[str] | None, baseline: str
) -> tuple[pl.DataFrame, list[str] | None]:
    """The results of a sweep, and the algorithms of its parts that the options name; None for all."""
    import polars as pl

    from replay.fleet import parts

    if len(folders) > 1:
        raise UsageError("name one folder of parts, or traces: not both, nor several folders")
    results = parts.read_all(folders[0])
    there = results["algorithm"].unique(maintain_order=True).to_list()
    listed = ", ".join(f"'{name}'" for name in there)
    if baseline not in there:
        raise ReplayError(
            f"the parts in '{folders[0]}' have no '{baseline}': sweep it too, or name another one: "
            f"--baseline {shlex.quote(there[0])}"
        )
    if algorithms is None and vary is None:
        return results, None
    # names of the parts stand for themselves: also those of the user's own, which only the sweep was told
    unknown = [text for text in algorithms or [] if text not in there]
    if vary or any("=" in text or text.endswith(".toml") for text in unknown):
        wanted = [algorithm.name for algorithm in _wanted(algorithms, vary, None)]
    else:
        wanted = [name for text in algorithms or [] for name in ([text] if text in there else names_of(text))]
    if not wanted:
        raise UsageError(f"no algorithm is named: choose from {listed}")
    missing = [name for name in wanted if name not in there]
    if missing:
        raise ReplayError(
            f"the parts in '{folders[0]}' have no '{missing[0]}': with -a, name some of {listed}"
        )
    return results.filter(pl.col("algorithm").is_in([baseline, *wanted])), wanted


def _costs() -> Calibration:
    """The calibration of this machine and kernel, before anything is replayed."""
    from replay.cost import calibration

    return calibration.read()


def _add_time(
    replayed: list[Replayed], results: pl.DataFrame, baseline: str, found: Calibration
) -> list[str]:
    """Lines with the estimated teardown time of each algorithm. found: the costs."""
    import polars as pl

    from replay.cost import calibration as kept

    seconds = kept.total_seconds(
        (
            (
                results.filter(pl.col("trace") == one.trace.name),
                kept.of_figures(one.figures) if one.figures is not None else kept.of_rows(one.trace.frame),
            )
            for one in replayed
        ),
        found,
    )
    lines = [f"estimated teardown time on this machine ({found.kernel}; {kept.off(found)}):"]
    for name, total in seconds.items():
        against = f", {(total / seconds[baseline] - 1) * 100:+.1f} %" if seconds.get(baseline) else ""
        kind = "  measured" if name == found.algorithm else "  extrapolated"
        lines.append(f"  {name:20} {total * 1000:12,.1f} ms{against if name != baseline else '':10}{kind}")
    lines.append(
        "  measured: this kernel runs the algorithm, and its costs were measured; extrapolated: the same "
        "costs, for the counts of another algorithm"
    )
    lines.append(f"  an estimate, not a count. {kept.priced(found)}. The costs leave out {kept.UNSEEN}")
    return lines


def _show_results(
    traces: list[Trace],
    results: pl.DataFrame,
    names: list[str] | None,
    baseline: str,
    output: Path | None,
    shape: Shape | None,
    per: Per | None,
    csv_safe: bool,
    sort: str,
    top: int,
) -> None:
    import polars as pl

    from replay.report import compare, files, notes
    from replay.teardown.counters import CHECKS

    metas = [trace.meta for trace in traces]
    named = [trace.name for trace in traces] or results["trace"].unique(maintain_order=True).to_list()

    def compared(per: Per, shown: list[str] | None = names) -> pl.DataFrame:
        keys = {Per.TOTAL: [], Per.TRACE: ["trace"], Per.MM: list(compare.KEYS)}[per]
        rows = results.drop(list(CHECKS)) if per is Per.MM else compare.total(results, keys)
        frame = compare.compare(rows, keys, baseline)
        frame = frame if shown is None else frame.filter(pl.col("algorithm").is_in(shown))
        return files.safe(frame) if csv_safe else frame

    if output is not None:
        full = compared(per or Per.MM)
        files.write(full, output)
        note(f"wrote {output}: {len(full):,} rows")
    if shape in (Shape.TABLE, Shape.MD):
        columns = width() if shape is Shape.TABLE else 0
        # a change without what it is against would be a riddle
        frame = compared(per or Per.TOTAL, None if names is None else [baseline, *names])
        if per is Per.MM:
            found = sheets(traces, frame, names, baseline, sort, top, columns)
        else:
            from replay.report import terminal

            running = notes.running(metas)
            found = [
                terminal.comparison(block, notes.title(block, named), columns, baseline, running)
                for block in _blocks(frame)
            ]
        if shape is Shape.MD:
            show_markdown(found)
        else:
            show(found, columns)
        note(*notes.kernels(metas, frame["algorithm"].unique()))
        note(*notes.alike(results))
    elif shape is not None:
        sys.stdout.write(files.text(compared(per or Per.MM), files.Format(shape.value)))
    for trace in traces:
        note(*notes.noticed(trace, several=len(traces) > 1))
        if not trace.meta.address_spaces:
            note(f"note: '{trace.name}' holds no address space")
    shown = results if names is None else results.filter(pl.col("algorithm").is_in(names))
    note(*notes.bugs(shown))


def _blocks(frame: pl.DataFrame) -> list[pl.DataFrame]:
    """The rows of each trace, or all of them."""
    from replay.report import compare

    keys = [name for name in compare.KEYS if name in frame.columns]
    blocks = frame.partition_by(keys, maintain_order=True) if keys else [frame]
    return [block for block in blocks if not block.is_empty()]


def _check(traces: list[Trace], algorithms: list[Algorithm]) -> None:
    """Say how many replays of the machine the reference confirms; end with `DIFFERENT` if it denies one."""
    from replay.teardown import agreement

    denied = False
    for trace in traces:
        found = agreement.compare(trace, algorithms)
        denied = denied or bool(found.differing)
        note(*found.differing)
        agreed = found.replays - len(found.differing)
        part = f", {found.cut:,} of them in part" if found.cut else ""
        note(
            f"check of '{trace.name}': the compiled replay and the reference agree in {agreed:,} "
            f"of {found.replays:,} replays of {found.compared:,} of {found.total:,} address spaces{part}"
        )
    if denied:
        sys.exit(DIFFERENT)
