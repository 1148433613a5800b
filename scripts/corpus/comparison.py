# SPDX-License-Identifier: Apache-2.0
"""The page that says what the comparison shows; every figure in it comes from the comparison's table."""

from collections.abc import Iterable, Sequence

import polars as pl

from replay.teardown.algorithms import ALGORITHMS

SHOWN = tuple(name for name, algorithm in ALGORITHMS.items() if algorithm.in_summaries)
SLOT_BYTES = {name: algorithm.entry.slot_bytes for name, algorithm in ALGORITHMS.items()}

BUILD, BUILD_LARGE = "build", "build-32k"

COUNTERS = {
    "rmap_calls": "Calls that remove rmaps: each takes one page down, or a run or range of one folio.",
    "atomics": "Atomic operations on mapcounts, on the folio's count of mapped pages and on refcounts.",
    "locks": "Acquisitions of the split queue's and of the LRU list's lock.",
    "release_entries": "Entries handed to the release code: one refcount operation each.",
    "release_calls": "Calls of the release function. `folio-batch` passes at most 15 entries in one, "
    "`v6.12` and `mainline` 31, the others 512: more calls, but short ones.",
    "gather_pages_peak": "Pages allocated for gather batches, at most 19 with page entries and 39 with "
    "ranges; of traces with several address spaces the largest.",
}

EXPERIMENT = (
    "rmap_calls",
    "mapcount_atomics",
    "nr_mapped_atomics",
    "refcount_atomics",
    "deferred_split_calls",
    "deferred_split_queued",
    "lruvec_locks",
    "atomics",
    "locks",
    "release_calls",
    "gather_bytes",
)
"""Counters shown of the two builds."""


def page(results: pl.DataFrame) -> str:
    """The page, from the table that `replay run` writes."""
    totals = _totals(results)
    traces = {name: Counts(totals, name) for name in totals["trace"].unique(maintain_order=True)}
    parts = [_head(results, len(traces)), _findings(traces, totals, results)]
    if BUILD in traces and BUILD_LARGE in traces:
        parts.append(_experiment(traces[BUILD], traces[BUILD_LARGE]))
    parts.append("## All traces\n")
    parts += [_by_trace(traces, counter, text) for counter, text in COUNTERS.items()]
    return "\n".join(parts)


class Counts:
    """Counts of one trace: `counts("v2", "rmap_calls")`."""

    def __init__(self, totals: pl.DataFrame, trace: str) -> None:
        rows = totals.filter(pl.col("trace") == trace).iter_rows(named=True)
        self.rows = {row["algorithm"]: row for row in rows}

    def __call__(self, algorithm: str, counter: str) -> int:
        return self.rows[algorithm][counter]

    def base(self, counter: str) -> int:
        """The baseline's count."""
        return self("baseline", counter)

    def change(self, algorithm: str, counter: str) -> float | None:
        """Percent more than the baseline; None where the baseline counts nothing."""
        before = self.base(counter)
        return (self(algorithm, counter) / before - 1) * 100 if before else None

    def cell(self, algorithm: str, counter: str) -> str:
        """A count, with the change against the baseline if there is one."""
        count = self(algorithm, counter)
        change = self.change(algorithm, counter)
        return f"{count:,} ({percent(change)})" if change else f"{count:,}"


def percent(value: float) -> str:
    """`+1,234 %`, `−12.3 %`; a second decimal where one would make 0 or 100 of what is not."""
    digits = 1 if abs(value) < 100 else 0
    if value and f"{abs(value):.1f}" in ("0.0", "100.0") and abs(value) < 100:
        digits = 2
    return f"{value:+,.{digits}f} %".replace("-", "−") if value else "±0"


def spread(traces: Iterable[Counts], algorithm: str, counter: str) -> str:
    """The smallest and the largest change of some traces."""
    changes = [change for counts in traces if (change := counts.change(algorithm, counter)) is not None]
    low, high = percent(min(changes)), percent(max(changes))
    return low if low == high else f"{low} to {high}"


def _totals(results: pl.DataFrame) -> pl.DataFrame:
    """One row for each trace and algorithm; peaks are maxima."""
    keys = {"trace", "mm", "pid", "comm", "algorithm"}
    peak = "gather_pages_peak"
    sums = [name for name in results.columns if name not in keys | {peak} and "_avoided" not in name]
    entry_bytes = pl.col("algorithm").replace_strict(SLOT_BYTES)
    return results.group_by("trace", "algorithm", maintain_order=True).agg(
        pl.len().alias("spaces"),
        pl.col(peak).max(),
        pl.col(sums).sum(),
        (pl.col("gather_slots") * entry_bytes).sum().alias("gather_bytes"),
    )


def _head(results: pl.DataFrame, traces: int) -> str:
    base = results.filter(pl.col("algorithm") == "baseline")
    return f"""# What the numbers show

Made by `scripts/compare_corpus` from `comparison.csv`, which is what `replay run captures/*.parquet` gives:
every counter of {len(base):,} address spaces of {traces} traces, {base["ptes"].sum():,} PTEs in all,
under each algorithm. What the traces are, `captures/README.md` says.
These are exact counts of operations, not time.
"""


def _findings(traces: dict[str, Counts], totals: pl.DataFrame, results: pl.DataFrame) -> str:
    large = {name: counts for name, counts in traces.items() if counts.base("deferred_split_calls")}
    small = {name: counts for name, counts in traces.items() if name not in large}
    lines = ["## In short", ""]
    if large:
        lines.append(_of_large(large))
    if small:
        lines.append(_of_small(small))
    lines += [_equal(totals, "v1", "v2"), _equal(totals, "v6.1", "baseline"), _missed(results)]
    return "\n".join(lines) + "\n"


def _of_large(traces: dict[str, Counts]) -> str:
    def of(algorithm: str, *counters: str) -> str:
        return ", ".join(f"{name} {spread(traces.values(), algorithm, name)}" for name in counters)

    common = ("rmap_calls", "atomics", "locks")
    return "\n".join(
        [
            f"- **Large anonymous folios mapped by PTEs** ({_listed(traces)}) are what the series is for:",
            f"  - v2: {of('v2', 'deferred_split_calls', *common, 'release_entries')}",
            f"  - anon-batch: {of('anon-batch', *common)}; the release is the baseline's",
            f"  - folio-batch: {of('folio-batch', 'locks')}; it changes the release only",
            f"  - mainline: {of('mainline', 'deferred_split_calls', *common, 'release_entries')}",
            "- **What v2 leaves there**: the LRU lock, taken once for each large folio that is freed "
            f"({of('v2', 'lruvec_locks')}); mainline takes it once for a batch "
            f"({of('mainline', 'lruvec_locks')}).",
        ]
    )


def _of_small(traces: dict[str, Counts]) -> str:
    def of(algorithm: str, *counters: str) -> str:
        return ", ".join(f"{name} {spread(traces.values(), algorithm, name)}" for name in counters)

    return "\n".join(
        [
            f"- **Ordinary pages and PMD-mapped THPs** ({_listed(traces)}): the series gains next to "
            "nothing, as only large folios of the page cache can be batched. "
            f"v2: {of('v2', 'rmap_calls', 'atomics', 'locks')}.",
            "- **What v2 costs there**: a gather entry has 16 bytes instead of 8 "
            f"({of('v2', 'gather_bytes')}; up to 39 pages instead of 19), and half as many fit a batch "
            f"({of('v2', 'release_calls')}).",
            "- **What folio-batch and mainline cost there**: "
            f"folio-batch {of('folio-batch', 'release_calls', 'locks')}; "
            f"mainline {of('mainline', 'release_calls', 'locks')}. "
            "Each call is short, and so is each hold of the lock: counts do not show that.",
        ]
    )


def _equal(totals: pl.DataFrame, one: str, other: str) -> str:
    """Whether two algorithms count alike, or in what they differ."""
    first, second = (totals.filter(pl.col("algorithm") == name).drop("algorithm") for name in (one, other))
    different = [name for name in first.columns if not first[name].equals(second[name])]
    if not different:
        return f"- **{one}** counts as {other} in every counter of every trace."
    return f"- **{one}** counts as {other} in all but {_listed(different)}."


def _missed(results: pl.DataFrame) -> str:
    """Whether the defect of v1 and v2 shows."""
    missed = results.filter(pl.col("rmap_missed") > 0)
    if missed.is_empty():
        return "- **rmap_missed** is 0 everywhere: no trace here meets the defect of v1 and v2."
    traces, algorithms = (
        _listed(missed[name].unique(maintain_order=True)) for name in ("trace", "algorithm")
    )
    return f"- **rmap_missed** is not 0 in {traces} with {algorithms}: pages behind a PMD of their folio."


def _by_trace(traces: dict[str, Counts], counter: str, text: str) -> str:
    rows = [
        [name, f"{counts.base('ptes'):,}", *(counts.cell(algorithm, counter) for algorithm in SHOWN)]
        for name, counts in traces.items()
    ]
    return f"### {counter}\n\n{text}\n\n{_table(['trace', 'PTEs', *SHOWN], rows)}"


def _experiment(small: Counts, large: Counts) -> str:
    """The series' own experiment, a build with and without large anonymous folios, beside its claims."""
    algorithms = ("baseline", "v2", "mainline")
    head = ["", *(f"{folios}, {name}" for folios in ("4 kB", "32 kB") for name in algorithms)]
    rows = [
        [name, *(counts.cell(algorithm, name) for counts in (small, large) for algorithm in algorithms)]
        for name in EXPERIMENT
    ]
    claims = ["the series measured", "the replay counts, baseline → v2", "comparable?"]
    return f"""## The series' experiment: a build without and with order-3 folios

The same build, every process at its exit: {small.base("spaces"):,} processes and {small.base("ptes"):,} PTEs
with ordinary pages, {large.base("spaces"):,} and {large.base("ptes"):,} with order-3 anonymous folios.
{_share(large):.0f} % of the latter PTEs map such a folio; most others map the page cache, first of all the
compiler itself.

{_table(head, rows)}
For the baseline, large folios make an exit dearer: {percent(_more(small, large, "atomics"))} atomics and
{percent(_more(small, large, "locks"))} locks against ordinary pages. The series is meant to mend that.

{_table(claims, _claims(small, large), ":---")}
The series compiled a kernel on arm64 with 8 and 80 jobs; this is a smaller C project on x86-64 with two.
Ratios depend on how much of a process is anonymous and on how whole its folios are at its end (fork, COW,
unmapping), so they carry over only roughly. Here, as in the series' kernels, every large anonymous folio of
order 2 or more goes to the split queue.
"""


def _claims(small: Counts, large: Counts) -> list[list[str]]:
    """Figures of the series, what is counted here, and what can be compared."""
    before = large.base("deferred_split_calls")
    after = before - large.base("rmap_calls") + large("anon-batch", "rmap_calls")
    rmap = ("mapcount_atomics", "nr_mapped_atomics")
    atomics = [sum(large(algorithm, counter) for counter in rmap) for algorithm in ("baseline", "v2")]

    def both(counter: str) -> str:
        changes = (small.change("v2", counter), large.change("v2", counter))
        return " and ".join("no count" if change is None else percent(change) for change in changes)

    return [
        [
            "cycles in rmap removal, order-3 folios: 24.7 → 5.5 billion (÷ 4.5)",
            f"all rmap calls ÷ {large.base('rmap_calls') / large('v2', 'rmap_calls'):.1f}, their atomics "
            f"÷ {atomics[0] / atomics[1]:.1f}; calls for order-3 folios alone, by anon-batch: "
            f"{before:,} → {after:,} (÷ {before / after:.1f})",
            "in direction only: a call costs more for more pages, whose mapcounts are still dropped one by "
            "one, and the page cache's share differs",
        ],
        [
            "cycles in `deferred_split_folio()`, order-3 folios: 5.2 billion → none",
            f"calls: {before:,} → {large('v2', 'deferred_split_calls'):,}",
            "yes: what is left are folios of more than one range, cut by the end of a gather batch or by "
            "a hole, too few to show in a profile",
        ],
        [
            "cycles in `exit_group`: −2 % without, −26 % with order-3 folios",
            f"atomics {both('atomics')}, locks {both('locks')}",
            "in order only: little without, much with. An exit does more than what is counted; where figures "
            "come close, it is by chance",
        ],
        [
            "gather memory with small folios: twice the bytes for an entry",
            f"bytes {both('gather_bytes')}",
            "yes; not quite twice with small ones: pages of the page cache's large folios share entries",
        ],
        [
            "kernel time of the build: −0.3 % (Altra) and −2.9 % (M2) without, −3.9 % and −3.7 % with "
            "order-3 folios",
            "nothing",
            "no: counts are not time, and exits are a part of a build's kernel time",
        ],
    ]


def _share(counts: Counts) -> float:
    return counts.base("deferred_split_calls") / counts.base("ptes") * 100


def _more(small: Counts, large: Counts, counter: str) -> float:
    return (large.base(counter) / small.base(counter) - 1) * 100


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], align: str = "---:") -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    lines.insert(1, "| --- " + f"| {align} " * (len(head) - 1) + "|")
    return "\n".join(lines) + "\n"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
