# SPDX-License-Identifier: Apache-2.0
"""The rows as CSV, and a summary to read."""

import csv
from collections import Counter
from pathlib import Path

from lab.architecture import Architecture, Built, Packaged
from lab.compare import AVERAGES, Row
from lab.run import Result

_INTRO = """\
# The kernel lab{title}

Every case is a process in a virtual machine (QEMU's emulated CPU, one virtual CPU) under
{kernel}.
It was stopped at `PTRACE_EVENT_EXIT`, its procfs state was dumped, and its `exit_mmap()` was traced
call by call (kprobe events with arguments and the tracepoint `kmem:mm_page_free`, nothing lost).
`replay capture --procfs` read the dump. The replay then ran the algorithm that the kernel's functions and
configuration show. What procfs cannot show was read from the page tables and told to the replay
({fed_in}).

Made by `{command}`; all values are in `{csv}`. `ptes`, `special_ptes` and `hugetlb_pages`
are read from the page tables, all else from the traced calls. `rmap_sizes` (how many calls had how many
pages), `release_sizes`, `flush_groups` and `freed_in_order` (a digest of the frames and orders) compare whole
sequences.

A case agrees if every counter and every sequence is the same. A case that differs is *explained* if each of
its differences has a known cause. The causes are:

- References that procfs does not show: pins, pages in a pipe, the batches of `MADV_COLD` and `MADV_FREE`. The
  kernel kept folios that the replay frees. At the dump each of them had more references than the process has
  page-table entries for it. The kernel freed all other folios that the replay frees, in the same order.
{causes}- Another task ran during `exit_mmap()`, or background work ran between the dump and the exit.
"""

_CAUSE_AVERAGES = """\
- Averages of mapcounts, explained below.
"""

_CAUSE_CONTIGUOUS = """\
- The contiguous bit, explained below. Only `contiguous_ptes` differs by this cause.
"""

_INTRO_AVERAGES = """\
This kernel has CONFIG_NO_PAGE_MAPCOUNT=y, which Debian's own kernels do not have: `/proc/kpagecount` says
an average for all pages of a large folio. Where pagemap says that the process alone maps a folio (bit 56),
capture takes the number of its entries instead. Folios that other processes map too keep their averages.
Averages explain a difference if it is gone once the replay is fed the mapcounts of the kernel,
`_large_mapcount` and `_entire_mapcount`, read through `/proc/kcore`. Of the {explained} explained cases,
{averages} differ by averages.
"""

_INTRO_ARM64 = """\
The processor is a Neoverse N1, that of the Ampere Altra which the series was measured on. `page_tables` is
not compared: the lab probes `___pte_free_tlb()`, `___pmd_free_tlb()` and `___pud_free_tlb()`, and arm64 has
no such functions. `tlb_flushes` are the calls of tlb_flush() that flush: at an exit those behind freed page
tables. In v6.12 a run ends where PTEs with the contiguous bit end. procfs does not show this bit. The
replay is fed the real bits. `contiguous_ptes` compares the number of PTEs that have the bit with the number
that the replay would infer.
"""


def write_csv(results: list[Result], path: Path) -> None:
    """All rows; the file appears whole or not at all."""
    part = path.with_name(path.name + ".part")
    with part.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            ["kernel", "release", "case", "counter", "kernel_value", "replay_value", "agrees", "cause"]
        )
        for result in results:
            writer.writerows([*row[:6], "yes" if row.agrees else "no", row.cause] for row in result.rows)
    part.replace(path)


def totals(result: Result) -> str:
    """One line: how many cases and comparisons agree."""
    cases, differing = len(result.cases), len(result.differing)
    agreeing = sum(row.agrees for row in result.rows)
    return (
        f"{result.kernel} ({result.release}, {result.algorithm}): "
        f"{cases - differing} of {cases} cases agree in everything, "
        f"{agreeing} of {len(result.rows)} comparisons; {len(result.unexplained)} unexplained, "
        f"{len(result.skipped)} not for this kernel, {len(result.failed)} failed"
    )


def _counter_table(results: list[Result]) -> list[str]:
    rows = [row for result in results for row in result.rows]
    names = list(dict.fromkeys(row.counter for row in rows))
    seen = Counter((row.kernel, row.counter) for row in rows)
    agreeing = Counter((row.kernel, row.counter) for row in rows if row.agrees)
    active = Counter((row.kernel, row.counter) for row in rows if row.kernel_value not in ("0", ""))
    kernels = [result.kernel for result in results]
    lines = ["| counter | " + " | ".join(f"{name}: agree; not 0" for name in kernels) + " |"]
    lines.append("|---|" + "---|" * len(kernels))
    for name in names:
        cells = [
            f"{agreeing[kernel, name]:,} of {seen[kernel, name]:,}; {active[kernel, name]:,}"
            if seen[kernel, name]
            else "not shown by the trace"
            for kernel in kernels
        ]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return lines


def _differences(results: list[Result]) -> list[str]:
    wrong: dict[tuple[str, str, str], list[Row]] = {}
    for result in results:
        for row in result.rows:
            if not row.agrees:
                wrong.setdefault((row.kernel, row.case, row.cause), []).append(row)
    if not wrong:
        return ["None."]
    lines = ["| kernel | case | counter: kernel / replay | cause |", "|---|---|---|---|"]
    for (kernel, case, cause), rows in wrong.items():
        values = "; ".join(
            f"`{row.counter}`: {_value(row, row.kernel_value)} / {_value(row, row.replay_value)}"
            for row in rows
        )
        lines.append(f"| {kernel} | `{case}` | {values} | {cause} |")
    return lines


def _value(row: Row, text: str) -> str:
    """A count with thousands separators; the digest of `freed_in_order` and long sequences are texts."""
    if text.isdecimal() and row.counter != "freed_in_order":
        return f"{int(text):,}"
    return text if len(text) <= 40 else text[:37] + "..."


def _kernel_lines(results: list[Result]) -> list[str]:
    lines = [
        "| kernel | release | algorithm | cases | agree | explained | unexplained | comparisons "
        "| comparisons that agree |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        agreeing = sum(row.agrees for row in result.rows)
        lines.append(
            f"| {result.kernel} | {result.release} | `{result.algorithm}` | {len(result.cases)} "
            f"| {len(result.cases) - len(result.differing)} "
            f"| {len(result.differing) - len(result.unexplained)} | {len(result.unexplained)} "
            f"| {len(result.rows):,} | {agreeing:,} |"
        )
    return lines


def _described(results: list[Result], architecture: Architecture) -> str:
    """What the kernels are, in the words of the first sentence."""
    known = [architecture.kernels.get(each.kernel) for each in results]
    if all(isinstance(each, Packaged) for each in known):
        return "a kernel of Debian, unmodified"
    built = [each for each in known if isinstance(each, Built)]
    if not built:
        return "a kernel given by `--image`"
    return (
        f"a kernel that the lab built from Debian's unmodified source, `{built[0].source}`,\n"
        f"with the configuration `scripts/lab/{built[0].config.name}`"
    )


def _intro_averages(results: list[Result]) -> str:
    """What averages of mapcounts are, and how many cases differ by them."""
    by_averages = {(row.kernel, row.case) for each in results for row in each.rows if row.cause == AVERAGES}
    explained = sum(len(each.differing) - len(each.unexplained) for each in results)
    return _INTRO_AVERAGES.format(explained=explained, averages=len(by_averages))


def summary(results: list[Result], architecture: Architecture, csv_name: str) -> str:
    """The summary as Markdown; csv_name: the file with all values."""
    arm64 = architecture.machine == "aarch64"
    command = "scripts/kernel_lab --arch arm64" if arm64 else "scripts/kernel_lab"
    built = [each.kernel for each in results if isinstance(architecture.kernels.get(each.kernel), Built)]
    averages = any(each.averages for each in results)
    intro = _INTRO.format(
        title=" on arm64" if arm64 else f" on x86-64: {built[0]}" if built else " on x86-64",
        fed_in="PTE dirty bits, contiguous PTEs, PMD mappings" if arm64 else "PTE dirty bits, PMD mappings",
        command=" ".join([command, *(f"--kernel {name}" for name in built)]),
        csv=csv_name,
        kernel=_described(results, architecture),
        causes=(_CAUSE_CONTIGUOUS if arm64 else "") + (_CAUSE_AVERAGES if averages else ""),
    )
    lines = [
        intro,
        *([_INTRO_ARM64] if arm64 else []),
        *([_intro_averages(results)] if averages else []),
        *_kernel_lines(results),
        "",
        "## By counter",
        "",
        "Of each kernel: in how many cases the counter agrees, of those compared; and in how many the",
        "kernel's figure is not 0.",
        "",
        *_counter_table(results),
    ]
    lines += ["", "## Differences", "", *_differences(results), "", "## Cases", ""]
    lines += [
        "A case is run again, up to four times, when background work (collapse, migration, compaction, swap,",
        "reclaim) ran between its dump and its exit.",
        "",
    ]
    for result in results:
        lines.append(f"**{result.kernel}**: " + ", ".join(f"`{case}`" for case in result.cases))
        lines.append("")
        lines += [f"Attempts repeated for background work: {result.repeated}.", ""]
        if result.missing_probes:
            missing = ", ".join(f"`{event}`" for event in result.missing_probes)
            lines += [
                f"Not probed, for the kernel has no such function or it cannot be probed: {missing}.",
                "",
            ]
        if result.skipped:
            lines += ["Not for this kernel: " + ", ".join(f"`{case}`" for case in result.skipped), ""]
        for case, why in result.failed.items():
            lines += [f"Failed: `{case}`: {why}", ""]
    return "\n".join(lines).rstrip() + "\n"
