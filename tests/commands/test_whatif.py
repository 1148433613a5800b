# SPDX-License-Identifier: Apache-2.0
"""`replay whatif` and `replay run --what-if` as a user calls them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import polars as pl
import pytest

import replay
from replay.report.compare import total
from replay.trace.whatif import what_if
from tests.commands.running import call, line, on_terminal
from tests.teardown.address_spaces import Piece, trace_of

CAPTURES = Path(__file__).parent.parent.parent / "captures"
NUMPY = CAPTURES / "numpy.parquet"


def test_writes_a_trace_that_is_marked(tmp_path: Path) -> None:
    path = tmp_path / "new.parquet"
    done = call("whatif", NUMPY, "--order", "32k", "-o", path)
    assert done.returncode == 0, done.stderr
    assert (
        "made: 8,645 folios of order 3; they hold 65,547 of the 66,140 private anonymous pages (256 MiB)"
        in done.stderr
    )
    assert "memory: +14.1 MiB (274 MiB resident before, 288 MiB after, +5.2 %)" in done.stderr
    assert "not changed: 2.1 MiB copies of file pages" in done.stderr
    assert "rmap calls" in done.stdout
    trace = replay.read_trace(path)
    assert trace.meta.what_if == "folios of order 3 (32k), policy fault"
    for command in (["inspect", path], ["run", path]):
        shown = call(*command)
        assert "note: a what-if, not memory as captured: folios of order 3" in shown.stderr
    assert "'new' is a what-if already" in line(
        call("whatif", path, "--order", "4", "-o", tmp_path / "more.parquet")
    )
    assert not (tmp_path / "more.parquet").exists()
    assert "is a what-if already" in line(call("run", path, "--what-if", "4"))


def test_default_name_and_json(tmp_path: Path) -> None:
    done = call("whatif", NUMPY, "--policy", "collapse", "--max-ptes-none", "0", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "numpy-whatif-collapse.parquet").exists()
    document = json.loads(done.stdout)
    assert document["pages_added"] == 0
    assert document["folios"]["9"] > 30
    rows = {(row["what_if"], row["algorithm"]): row for row in document["counts"]}
    assert rows["what-if", "mainline"]["rmap_calls"] < rows["as captured", "mainline"]["rmap_calls"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["--order", "10"],
            "anonymous memory has no folios of order 10 (base pages of 4 KiB): give order 0 (4k), or",
        ),
        (["--order", "1"], "no folios of order 1"),
        (["--order", "many"], "'many' is no folio size"),
        ([], "name the folio size"),
        (["--order", "3", "--policy", "all"], "--policy is 'fault' or 'collapse'"),
        (["--order", "3", "--policy", "collapse"], "give --order 9, or leave --order out"),
        (["--order", "3", "--max-ptes-none", "5"], "--max-ptes-none goes with --policy collapse"),
    ],
)
def test_wrong_usage(tmp_path: Path, arguments: list[str], says: str) -> None:
    path = tmp_path / "new.parquet"
    assert says in line(call("whatif", NUMPY, *arguments, "-o", path), 2)
    assert not path.exists()


def test_where_nothing_fits(tmp_path: Path) -> None:
    small = trace_of([Piece(count=30)], 9).write(tmp_path / "small.parquet")
    done = call("whatif", small, "--order", "9", "-o", tmp_path / "new.parquet")
    assert done.returncode == 0
    assert "note: nothing changed, because no VMA holds a whole block of this size" in done.stderr


def test_run_compares_by_order(tmp_path: Path) -> None:
    path = tmp_path / "by_order.csv"
    done = call("run", NUMPY, "--what-if", "0,3,2m", "-a", "v2,mainline", "-o", path)
    assert done.returncode == 0, done.stderr
    rows = list(csv.DictReader(path.open()))
    assert [row["what_if"] for row in rows[::3]] == ["as captured", "order 0", "order 3", "order 9"]
    for row in rows:
        trace = replay.read_trace(NUMPY)
        if row["order"]:
            found = what_if(trace, [int(row["order"])])
            trace = found.trace
            assert int(row["pages_added"]) == found.added
        counted = total(replay.run(trace, [row["algorithm"]])).row(0, named=True)
        assert {name: int(row[name]) for name in ("rmap_calls", "atomics", "locks")} == {
            name: counted[name] for name in ("rmap_calls", "atomics", "locks")
        }
    [per_mm] = pl.read_csv(io.StringIO(call("run", NUMPY, "--what-if", "3", "--per", "mm").stdout))[
        "mm"
    ].unique()
    assert per_mm == 0


def test_run_shows_it_on_a_terminal() -> None:
    shown = on_terminal("run", NUMPY, "--what-if", "0,3", "-a", "v2")
    assert "32.0 KiB" in shown
    assert "+14.1 MiB" in shown
    assert "13,004" in shown
    assert "-81.5 %" in shown
