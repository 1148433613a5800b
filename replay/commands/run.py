# SPDX-License-Identifier: Apache-2.0
"""`replay run`: the teardown algorithms over traces, compared."""

from __future__ import annotations

import dataclasses
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
            help="Algorithms to replay. Changed parameters follow a name: 'v2,bundle=8'. A .toml file "
            "defines several algorithms. Repeatable. See 'replay algorithms'.",
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
            "frees it. Without this, each is torn down as if the others stayed.",
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
    wanted = _wanted(algorithms, vary, page_tables)
    base = variants.chosen(variants.one(baseline, {one.name: one for one in wanted}), page_tables)[0]
    replayed = wanted if base.name in {one.name for one in wanted} else [base, *wanted]

    from replay.trace import file

    parts = [path for path in traces if path.is_dir()]
    if shape is None and output is None:
        shape = Shape.TABLE if sys.stdout.isatty() else Shape.CSV
    ranked = ranking(sort, top, table=per is Per.MM and shape in (Shape.TABLE, Shape.MD))
    names = None if algorithms is None and vary is None else [one.name for one in wanted]
    if what_if is not None:
        if together or check or time or pid or parts:
            raise UsageError("--what-if goes without --together, --check, --time, --pid and parts of a sweep")
        loaded = file.read_all(traces, partial=partial)
        run_what_if(loaded, what_if, replayed, names, base.name, output, shape, per)
        return
    costs = _costs(parts) if time else None
    found = [] if parts else _replay(traces, replayed, partial, together, exits)
    loaded = [one.trace for one in found]
    results = of_pids(_swept(traces, replayed) if parts else _results(found), pid)
    if costs:
        note(*_add_time(found, results, base.name, costs))
    _show_results(loaded, results, names, base.name, output, shape, per, csv_safe, *ranked)
    if not together:
        _note_shared(traces, found)
    if check:
        _check(file.read_all(traces, partial=partial), replayed)
    if verbose:
        note(_peak_memory())


def names_of(text: str) -> list[str]:
    """Names separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _pids(text: str) -> list[int]:
    names = names_of(text)
    if not names or not all(name.isascii() and name.isdigit() and len(name) < 10 for name in names):
        raise UsageError(f"--order takes process numbers separated by commas, not '{text}'")
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
            results = replayer.run_checked(trace, algorithms, together=True, order=order)
            found.append(replayer.Replayed(trace, results, None))
        else:
            found.append(replayer.replayed_file(path, algorithms, partial=partial, name=name))
    return found


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


def _swept(folders: list[Path], algorithms: list[Algorithm]) -> pl.DataFrame:
    """The results of a sweep: rows of the wanted algorithms of its parts."""
    import polars as pl

    from replay.fleet import parts

    if len(folders) > 1:
        raise UsageError("name one folder of parts, or traces: not both, nor several folders")
    results = parts.read_all(folders[0])
    wanted = [algorithm.name for algorithm in algorithms]
    there = set(results["algorithm"])
    missing = [name for name in wanted if name not in there]
    if missing:
        raise ReplayError(
            f"the parts in {folders[0]} have no '{missing[0]}': with -a, name some of "
            f"{', '.join(sorted(there))}"
        )
    return results.filter(pl.col("algorithm").is_in(wanted))


def _costs(parts: list[Path]) -> Calibration:
    """The calibration of this machine and kernel, before anything is replayed."""
    from replay.cost import calibration

    if parts:
        raise UsageError("--time needs the traces: a sweep's parts do not say how many VMAs there are")
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
            note(f"note: {trace.name} holds no address space")
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
            f"check of {trace.name}: the compiled replay and the reference agree in {agreed:,} "
            f"of {found.replays:,} replays of {found.compared:,} of {found.total:,} address spaces{part}"
        )
    if denied:
        sys.exit(DIFFERENT)
