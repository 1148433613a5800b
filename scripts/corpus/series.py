# SPDX-License-Identifier: Apache-2.0
"""The page that sets a recorded kernel compile beside what the series published; each figure is computed."""

from __future__ import annotations

from typing import NamedTuple

import polars as pl

from corpus.comparison import SUMS, listed, percent
from replay.cost.calibration import FEATURES

ALGORITHMS = ("baseline", "v1", "v2", "v6.12", "mainline")
COUNTERS = (
    "rmap_calls",
    "mapcount_atomics",
    "nr_mapped_atomics",
    "large_mapcount_atomics",
    "refcount_atomics",
    "deferred_split_calls",
    "deferred_split_queued",
    "deferred_split_dequeued",
    "lruvec_locks",
    "atomics",
    "locks",
    "release_entries",
    "release_calls",
    "gather_slots",
)
SLOT_BYTES = {"v1": 16, "v2": 16}
"""Bytes of a gather slot; 8 for algorithms that are not named."""


TRACES = ("ordinary", "order-3")


class About(NamedTuple):
    """Where the traces come from: what was compiled, by what command, on what machine."""

    program: str
    command: str
    machine: str


def page(totals: pl.DataFrame, about: About) -> str:
    """The page.

    totals: of `compare.total` per trace, which is `ordinary` or `order-3`, with a column `estimated_s` where
    the machine was calibrated.
    """
    counts = {(row["trace"], row["algorithm"]): row for row in totals.iter_rows(named=True)}
    names = [name for name in ALGORITHMS if ("ordinary", name) in counts]

    def change(trace: str, algorithm: str, counter: str) -> str:
        before, after = counts[trace, "baseline"][counter], counts[trace, algorithm][counter]
        return percent((after / before - 1) * 100) if before else ("±0" if not after else "")

    def ratio(trace: str, algorithm: str, counter: str) -> str:
        before, after = counts[trace, "baseline"][counter], counts[trace, algorithm][counter]
        return f"÷ {before / after:,.1f}" if after else "none left"

    def tables(trace: str) -> list[str]:
        lines = [
            "| | " + " | ".join(names) + " |",
            "| --- |" + " ---: |" * len(names),
        ]
        for counter in COUNTERS:
            cells = []
            for name in names:
                moved = change(trace, name, counter) if name != "baseline" else ""
                cells.append(f"{counts[trace, name][counter]:,}" + (f" ({moved})" if moved else ""))
            lines.append(f"| {counter} | " + " | ".join(cells) + " |")
        if "estimated_s" in totals.columns:
            cells = [f"{counts[trace, names[0]]['estimated_s']:.2f} s"]
            cells += [
                f"{counts[trace, name]['estimated_s']:.2f} s ({change(trace, name, 'estimated_s')})"
                for name in names[1:]
            ]
            lines.append("| estimated teardown time | " + " | ".join(cells) + " |")
        return lines

    timed = (
        "The times are estimates by the calibration of the machine named above (`replay calibrate`). It measured "
        "the algorithm that its kernel runs; for the others the times are extrapolated. `scripts/bench_time` says how far "
        "such estimates are from the exits of real programs: compare them with each other only."
        if "estimated_s" in totals.columns
        else "There are no times: the machine was not calibrated."
    )

    def alike() -> list[str]:
        """Why estimated times are alike where counts differ."""
        if "estimated_s" not in totals.columns:
            return []
        priced = [name for name in FEATURES if name in totals.columns]
        batched = [name for name in names if name != "baseline"]
        apart = {name: max(spread(trace, name, batched) for trace in TRACES) for name in priced}
        widest = max(apart, key=lambda name: apart[name])
        return [
            f"Of the counters, only these can have a cost in the estimated time: {listed(priced)}. Atomics, locks "
            f"and release calls have none. {listed(batched)} differ in `rmap_calls` by at most "
            f"{apart['rmap_calls']:.2g} %, and in no other counter with a cost by more than "
            f"{apart[widest]:.2g} % (`{widest}`). Hence their estimated times are alike, though other counts differ.",
            "",
        ]

    def spread(trace: str, counter: str, algorithms: list[str]) -> float:
        """By how many percent the largest count of some algorithms is above the smallest."""
        found = [counts[trace, name][counter] for name in algorithms]
        return (max(found) / min(found) - 1) * 100 if min(found) else 0.0

    def time(trace: str) -> str:
        if "estimated_s" not in totals.columns:
            return ""
        return f", estimated time {change(trace, 'v2', 'estimated_s')}"

    def gather_bytes(trace: str, algorithm: str) -> int:
        return int(counts[trace, algorithm]["gather_slots"]) * SLOT_BYTES.get(algorithm, 8)

    memory = percent((gather_bytes("ordinary", "v2") / gather_bytes("ordinary", "baseline") - 1) * 100)
    ordinary, large = counts["ordinary", "baseline"], counts["order-3", "baseline"]
    return "\n".join(
        [
            "# The series' experiment: a kernel compile",
            "",
            "Generated by `scripts/reproduce_series`; do not edit.",
            "",
            f"{about.program}, compiled by `{about.command}` on {about.machine}. Every address space that the compile",
            f"tore down was recorded: {ordinary['address_spaces']:,} with {ordinary['ptes']:,} PTEs with ordinary pages, "
            f"{large['address_spaces']:,} with {large['ptes']:,} PTEs with",
            f"anonymous folios of order 3. The counts are exact. {timed}",
            "",
            "## Beside the published figures",
            "",
            "The series was measured on arm64 (Ampere Altra, 80 jobs; Apple M2 VM, 8 jobs).",
            "",
            "| the series measured | the replay counts, baseline to v2 | do they agree? |",
            "| --- | --- | --- |",
            "| rmap removal with order-3 folios: 24.7 to 5.5 billion cycles (÷ 4.5) | rmap calls "
            f"{ratio('order-3', 'v2', 'rmap_calls')}, `nr_mapped_atomics` "
            f"{ratio('order-3', 'v2', 'nr_mapped_atomics')}, deferred split calls "
            f"{ratio('order-3', 'v2', 'deferred_split_calls')} | In direction. Cycles of rmap removal contain all "
            "three, and the share of the page cache, which stays as it is, differs. |",
            "| `deferred_split_folio()` with order-3 folios: 5.2 billion cycles to none | calls "
            f"{large['deferred_split_calls']:,} to {counts['order-3', 'v2']['deferred_split_calls']:,} | Yes. |",
            "| `exit_group`, ordinary pages: −2 % cycles | atomics "
            f"{change('ordinary', 'v2', 'atomics')}, locks {change('ordinary', 'v2', 'locks')}{time('ordinary')} | "
            "Yes: hardly any "
            "change. |",
            "| `exit_group`, order-3 folios: −26 % cycles | atomics "
            f"{change('order-3', 'v2', 'atomics')}, locks {change('order-3', 'v2', 'locks')}{time('order-3')} | "
            "In direction. An exit "
            "does more than what is counted. |",
            f"| gather memory with small folios: twice the bytes per entry | bytes {memory} | Yes. Pages of large "
            "folios of the page cache share entries. |",
            "| kernel time of the compile: −0.3 % to −2.9 % (ordinary), −3.7 % to −3.9 % (order 3) | not counted | "
            "Counts are not time, and exits are a part of the kernel time. |",
            "",
            "## Ordinary pages",
            "",
            *tables("ordinary"),
            "",
            SUMS,
            "",
            *alike(),
            "## Anonymous folios of order 3",
            "",
            *tables("order-3"),
            "",
            "## Repeat it",
            "",
            "`scripts/reproduce_series --work DIR` makes both traces again and keeps them in DIR. They are too large",
            "to be kept here; `series.csv` has the totals of every counter, `series-sample.parquet` every hundredth",
            "address space of the second trace.",
            "",
        ]
    )
