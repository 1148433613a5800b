# SPDX-License-Identifier: Apache-2.0
"""The pages of the comparison: as their table is now, the table as the replay counts now."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final

import polars as pl
import pytest

import replay
from replay.report import compare
from replay.teardown.algorithms import ALGORITHMS, BASELINE
from replay.teardown.counters import COUNTERS

ROOT: Final = Path(__file__).resolve().parents[2]
REPORTS: Final = ROOT / "reports"
sys.path.insert(0, str(ROOT / "scripts"))

from corpus import comparison  # noqa: E402

RESULTS: Final = pl.read_csv(REPORTS / "comparison.csv", infer_schema_length=None)
CAPTURES: Final = sorted(path.stem for path in (ROOT / "captures").glob("*.parquet"))


@pytest.mark.parametrize(("page", "text"), comparison.pages(RESULTS).items())
def test_the_pages_are_current(page: str, text: str) -> None:
    assert (REPORTS / page).read_text() == text, "run scripts/compare_corpus"


def test_the_table_has_a_row_for_each_trace_and_algorithm() -> None:
    rows = RESULTS.select("trace", "algorithm").rows()
    assert len(rows) == len(set(rows))
    assert set(rows) == {(trace, algorithm) for trace in CAPTURES for algorithm in ALGORITHMS}


@pytest.mark.parametrize("name", ["numpy-32k", "pipeline", "redis"])
def test_the_table_has_what_the_replay_counts(name: str) -> None:
    counted = compare.total(replay.run(replay.read_trace(ROOT / "captures" / f"{name}.parquet")))
    columns = ["algorithm", "address_spaces", *COUNTERS]
    kept = RESULTS.filter(pl.col("trace") == name)
    assert kept.select(columns).rows() == counted.select(columns).rows()


def test_the_first_page_has_a_picture_and_a_row_for_each_algorithm() -> None:
    first = (REPORTS / "README.md").read_text().partition("| page |")[0]
    assert len(first.splitlines()) < 40
    assert first.count("![") == 1
    rows = [line.strip("| ").split(" | ") for line in first.splitlines() if line.startswith("| `")]
    assert [row[0].strip("`") for row in rows] == list(ALGORITHMS)
    columns = [(trace, counter) for trace, counters in comparison.SUMMARY.items() for counter in counters]
    counts = {(row["trace"], row["algorithm"]): row for row in RESULTS.iter_rows(named=True)}
    shown = [int(cell.replace(",", "")) for cell in rows[0][1:]]
    assert shown == [counts[trace, BASELINE][counter] for trace, counter in columns]
    for algorithm, *cells in rows[1:]:
        for cell, (trace, counter) in zip(cells, columns, strict=True):
            before = counts[trace, BASELINE][counter]
            change = (counts[trace, algorithm.strip("`")][counter] / before - 1) * 100
            number = cell.replace("±", "").replace("−", "-").replace(",", "").removesuffix(" %")
            assert float(number) == pytest.approx(change, abs=0.5 if abs(change) >= 100 else 0.051)


@pytest.mark.parametrize("page", comparison.pages(RESULTS))
def test_links_lead_to_files(page: str) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", (REPORTS / page).read_text())
    for link in links:
        assert (REPORTS / link).exists(), link
    assert links or page != "README.md"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "±0"), (-100, "−100 %"), ((7 / 4_933_594 - 1) * 100, "−99.9999 %"), (0.004, "+0.004 %")],
)
def test_only_0_and_100_percent_are_written_so(value: float, text: str) -> None:
    assert comparison.percent(value) == text


@pytest.mark.parametrize("page", ["experiment.md", "series.md"])
def test_the_rows_add_up_to_the_sums(page: str) -> None:
    tables = [
        table.splitlines()
        for table in (REPORTS / page).read_text().split("\n\n")
        if "| rmap_calls |" in table
    ]
    assert tables
    for table in tables:
        cells = {line.split("|")[1].strip(): re.findall(r"\| ([\d,]+)", line) for line in table}
        counts = {name: [int(cell.replace(",", "")) for cell in found] for name, found in cells.items()}
        atomics = [counts[name] for name in counts if name.endswith("_atomics")]
        locks = [counts[f"deferred_split_{name}"] for name in ("queued", "dequeued")]
        assert counts["atomics"] == [sum(column) for column in zip(*atomics, strict=True)]
        assert counts["locks"] == [sum(column) for column in zip(*locks, counts["lruvec_locks"], strict=True)]
