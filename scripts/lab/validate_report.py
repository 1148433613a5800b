# SPDX-License-Identifier: Apache-2.0
"""What `replay validate` said on the lab's kernels, as Markdown."""

from collections import Counter, defaultdict
from typing import Any

from lab.validate import MEMORY_MIB, WORKLOADS, Validated
from replay.teardown.counters import COUNTERS

_INTRO = f"""\
# `replay validate` in the lab: {{kernels}}

Written by `scripts/kernel_lab --validate`. Debian's kernels, unmodified, run `replay validate`
itself in QEMU (emulated CPU, {MEMORY_MIB} MiB of memory): its built-in workloads, and commands.
Each exit is captured at its exit stop and replayed with what procfs shows, no more. The folios that the
kernel frees are compared with the replay one by one (*exact*: the same ones in the same order). The calls
that it makes from the entry of `exit_mmap()` to the return of its `tlb_finish_mmu()` are compared counter by
counter. [validate.md](validate.md) says what the workloads do, and defines the [causes](validate.md#causes)
of differences.

The commands, beside the workloads:

- `pipeline`: a shell pipes `ls` into `sort`, `sed` and `tail`, three times.
- `python`: Python loads NumPy, Polars and modules of its own library.
- `build`: three runs of gcc compile at the same time.
- `build-as-it-is`: the same build under `replay validate --no-drain`, which leaves the LRU batches as they
  are.

On kernels before v6.16 all other runs empty the LRU batches of all CPUs before each exit. Since v6.16
`exit_mmap()` empties no LRU batch, and no run does.

`page_tables` is compared where page tables go through the gather. There an exit has 15 call counts. Kernels
that free page tables by RCU, as v7.3, have 14.

Below, *tests* is what pytest says of `tests/validate/test_probes.py`, which runs in the same guest.
"""


def totals(result: Validated) -> str:
    """One line: how many exits are exact, how many call counts agree."""
    verdicts = [verdict for document in result.documents.values() for verdict in document["verdicts"]]
    counts = [count for verdict in verdicts for count in verdict["counters"]]
    unexplained = sum(count["cause"] == "unexplained" for count in counts)
    unexplained += sum(
        each["cause"] == "unexplained" for verdict in verdicts for each in verdict["differences"]
    )
    exact = sum(verdict["exact"] for verdict in verdicts)
    line = (
        f"{result.kernel} ({result.release}): {exact} of {len(verdicts)} exits exact, "
        f"{sum(count['agrees'] for count in counts):,} of {len(counts):,} call counts agree, "
        f"{unexplained} differences without a known cause"
    )
    return f"{line}; tests: {result.tests}" if result.tests else line


def _run_rows(result: Validated) -> list[str]:
    rows = []
    for name, document in result.documents.items():
        groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for verdict in document["verdicts"]:
            groups[_label(name, verdict)].append(verdict)
        for workload, verdicts in groups.items():
            counts = [count for verdict in verdicts for count in verdict["counters"]]
            causes = Counter(each["cause"] for verdict in verdicts for each in verdict["differences"])
            calls = Counter(
                f"{count['counter']} ({count['cause']})" for count in counts if not count["agrees"]
            )
            rows.append(
                f"| {result.kernel} | {workload} | {len(verdicts)} "
                f"| {sum(verdict['exact'] for verdict in verdicts)} "
                f"| {sum(verdict['observed'] for verdict in verdicts):,} | {_list(causes)} "
                f"| {len(counts):,} | {sum(count['agrees'] for count in counts):,} | {_list(calls)} |"
            )
    return rows


def _label(run: str, verdict: dict[str, Any]) -> str:
    """A workload by its name, a command as such: one of each is called python."""
    return verdict["workload"] if run == WORKLOADS else f"command: {run}"


def _list(counted: Counter[str]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counted.items())


def _counter_rows(results: list[Validated]) -> list[str]:
    found: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        for document in result.documents.values():
            for verdict in document["verdicts"]:
                for count in verdict["counters"]:
                    found[count["counter"]][result.kernel].append(count)
    rows = []
    for name in COUNTERS:
        if name in found:
            cells = []
            for result in results:
                counts = found[name][result.kernel]
                agreeing = sum(count["agrees"] for count in counts)
                cells.append(
                    f"{agreeing:,} of {len(counts):,}; {sum(count['observed'] != 0 for count in counts):,}"
                )
            rows.append(f"| `{name}` | {' | '.join(cells)} |")
    return rows


def _differences(results: list[Validated]) -> list[str]:
    rows = []
    for result in results:
        for name, document in result.documents.items():
            for verdict in document["verdicts"]:
                who = f"| {result.kernel} | {_label(name, verdict)} | {verdict['comm']} "
                rows += [
                    f"{who}| `{count['counter']}` | {count['predicted']:,} | {count['observed']:,} "
                    f"| {count['cause']} | {count['evidence']} |"
                    for count in verdict["counters"]
                    if not count["agrees"]
                ]
    return rows


def summary(results: list[Validated]) -> str:
    """The whole report."""
    lines = [_INTRO.replace("{kernels}", ", ".join(each.kernel for each in results))]
    lines += [f"- {totals(result)}" for result in results]
    for result in results:
        for document in result.documents.values():
            lines += [f"- {result.kernel}, {name}: {why}" for name, why in document["notes"].items()]
            if document["calls_not_compared"]:
                lines.append(f"- {result.kernel}: calls not compared: {document['calls_not_compared']}")
        lines += [f"- {result.kernel}, {name} failed: {why}" for name, why in result.failed.items()]
    lines += ["", "## By workload", ""]
    lines += ["| kernel | workload or command | exits | exact | folios freed | folios that differ, by cause "]
    lines[-1] += "| call counts | agree | call counts that differ, by cause |"
    lines.append("|---|---|---|---|---|---|---|---|---|")
    lines += [row for result in results for row in _run_rows(result)]
    lines += ["", "## By counter", ""]
    lines += [
        "Of each kernel: at how many exits the counter agrees, of those compared; and at how many the",
        "kernel's figure is not 0.",
        "",
    ]
    lines.append("| counter | " + " | ".join(f"{each.kernel}: agree; not 0" for each in results) + " |")
    lines.append("|---|" + "---|" * len(results))
    lines += _counter_rows(results)
    lines += ["", "## Call counts that differ", ""]
    rows = _differences(results)
    if rows:
        lines.append(
            "| kernel | workload or command | program | counter | replay | kernel | cause | evidence |"
        )
        lines.append("|---|---|---|---|---|---|---|---|")
    lines += rows or ["None."]
    return "\n".join(lines) + "\n"
