# SPDX-License-Identifier: Apache-2.0
"""`replay run`: what it writes where, which algorithms, which messages."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path

import polars as pl

import replay
from replay.teardown.algorithms import ALGORITHMS
from replay.teardown.counters import COUNTERS
from tests.capture.trees import TRUTH, lay_out
from tests.commands.running import CAPTURES, call, line, on_terminal
from tests.teardown.address_spaces import Piece, trace_of

MANY = CAPTURES / "postgresql-run.parquet"


def test_run_to_a_pipe_is_csv(path: Path):
    done = call("run", path)
    assert done.returncode == 0
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    avoided = [f"{name}_{what}" for name in COUNTERS for what in ("avoided", "avoided_pct")]
    assert list(rows[0]) == ["trace", "mm", "pid", "comm", "algorithm", *COUNTERS, *avoided]
    assert [row["algorithm"] for row in rows] == list(ALGORITHMS)
    found = {row["algorithm"]: row for row in rows}
    assert found["baseline"]["rmap_calls"] == "110"
    # ten folios and thirty pages; the eighth range fills the bundle with its first page
    assert (found["v2"]["rmap_calls"], found["v2"]["rmap_calls_avoided"]) == ("41", "69")
    assert found["v2"]["rmap_calls_avoided_pct"] == "62.73"
    assert found["folio-batch"]["release_calls_avoided"].startswith("-")


def test_run_on_a_terminal_is_a_table(path: Path):
    shown = on_terminal("run", path)
    assert "1 address space, 110 PTEs, 0 PMD mappings" in shown
    assert "-62.7 %" in shown
    assert max(map(len, shown.splitlines())) <= 100
    assert "made-up" in on_terminal("run", path, "--per", "mm")


def test_run_writes_by_the_ending(path: Path, tmp_path: Path):
    frames = []
    for ending, reader in ((".csv", pl.read_csv), (".json", pl.read_json), (".parquet", pl.read_parquet)):
        out = tmp_path / f"out{ending}"
        done = call("run", path, "-a", "v2,mainline", "-o", out)
        assert done.returncode == 0
        assert done.stdout == ""
        assert f"wrote {out}" in done.stderr
        frames.append(reader(out).select("algorithm", "rmap_calls", "rmap_calls_avoided"))
    assert frames[0].rows() == frames[1].rows() == frames[2].rows() == [("v2", 41, 69), ("mainline", 40, 70)]


def test_several_traces(path: Path, tmp_path: Path):
    other = trace_of([Piece(count=5)], 1).write(tmp_path / "other.parquet")
    frame = pl.read_csv(io.StringIO(call("run", path, other, "-a", "v2").stdout))
    assert frame["trace"].to_list() == ["some", "other"]
    assert frame["ptes"].to_list() == [110, 5]


def test_page_tables_can_take_the_rcu_path(path: Path):
    for where, batches in (("gather", 0), ("rcu", 1)):
        frame = pl.read_csv(io.StringIO(call("run", path, "-a", "baseline", "--page-tables", where).stdout))
        assert frame.select("page_tables", "table_batches").rows() == [(9, batches)]


def test_run_against_any_algorithm_shows_it(path: Path):
    shown = on_terminal("run", path, "-a", "mainline", "--baseline", "v6.12")
    assert "v6.12" in shown and "mainline" in shown
    frame = pl.read_csv(io.StringIO(call("run", path, "-a", "mainline", "--baseline", "v6.12").stdout))
    assert frame.select("algorithm", "release_entries_avoided").rows() == [("mainline", 9)]


def test_run_with_algorithms_of_ones_own(path: Path, tmp_path: Path):
    file = tmp_path / "mine.toml"
    file.write_text('[mine]\nbase = "v2"\nbundle = 16\n')
    done = call(
        "run", path, "-a", file, "-a", "mine,bundle=32,name=more", "--vary", "max_folios_per_free=1,2"
    )
    assert pl.read_csv(io.StringIO(done.stdout))["algorithm"].to_list() == [
        *(f"mine,max_folios_per_free={n}" for n in (1, 2)),
        *(f"more,max_folios_per_free={n}" for n in (1, 2)),
    ]
    assert "it must be a whole number" in line(call("run", path, "-a", "v2,bundle=x"), 2)
    assert "--together" in line(call("run", path, "--order", "1"), 2)


def test_run_checks_itself(path: Path):
    done = call("run", path, "-a", "v2,mainline", "--check")
    assert done.returncode == 0
    assert (
        "the compiled replay and the reference agree in 3 of 3 replays of 1 of 1 address spaces"
        in done.stderr
    )


def test_run_says_what_is_wrong(path: Path, tmp_path: Path):
    assert "unknown algorithm 'v3': choose from baseline" in line(call("run", path, "-a", "v3"), 2)
    assert "let it end in .csv" in line(call("run", path, "-o", tmp_path / "out.xls"), 2)
    assert "'gather' or 'rcu'" in line(call("run", path, "--page-tables", "ipi"), 2)
    assert "no such file" in line(call("run", tmp_path / "none.parquet"))
    assert "cannot write" in line(call("run", path, "-o", tmp_path / "none" / "out.csv"))
    assert not (tmp_path / "none").exists()


def test_run_reports_the_bug_of_v1_and_v2(tmp_path: Path):
    pid, _ = lay_out(TRUTH / "v2-on-6.12" / "v2_pmd_then_pte", tmp_path / "proc")
    out = tmp_path / "t.parquet"
    captured = call("capture", pid, "--procfs", tmp_path / "proc", "-o", out)
    assert captured.returncode == 0, captured.stderr
    assert "RssShmem 3892 kB" in captured.stderr
    assert f"next: replay run {out}" in captured.stderr
    done = call("run", out)
    assert [text.split(",")[0] for text in done.stderr.splitlines() if text.startswith("bug of")] == [
        "bug of v1: 300 pages torn down whose rmap is never removed (rmap_missed)",
        "bug of v2: 300 pages torn down whose rmap is never removed (rmap_missed)",
    ]


def test_traces_of_one_name_are_told_apart(tmp_path: Path):
    paths = []
    for folder, count in (("before", 30), ("after", 300)):
        (tmp_path / folder).mkdir()
        trace = trace_of([Piece(count=count)], 9)
        paths.append(trace.write(tmp_path / folder / "app.parquet"))
    done = call("run", *paths, "-a", "v2")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [(row["trace"], row["ptes"]) for row in rows] == [
        (str(paths[0]), "30"),
        (str(paths[1]), "300"),
    ]
    assert "is given twice" in line(call("run", paths[0], paths[0]), status=2)


def test_a_report_never_replaces_a_trace(path: Path, tmp_path: Path):
    other = trace_of([Piece(count=3)], 9).write(tmp_path / "other.parquet")
    for target in (path, other):
        before = target.read_bytes()
        assert "cannot be made again" in line(call("run", path, "-o", target))
        assert target.read_bytes() == before
    out = tmp_path / "report.parquet"
    assert [call("run", path, "-o", out).returncode for _ in range(2)] == [0, 0]


def test_formats_and_parts(path: Path):
    assert "1 address space, 110 PTEs" in call("run", path, "--format", "table").stdout
    rows = json.loads(call("run", path, "--format", "json", "--per", "total", "-a", "v2", "-a", "v1").stdout)
    assert [(row["algorithm"], row["address_spaces"]) for row in rows] == [("v1", 1), ("v2", 1)]
    assert "no algorithm is named" in line(call("run", path, "-a", ""), status=2)


def test_the_machine_without_a_cache(path: Path, tmp_path: Path):
    (tmp_path / "replay").write_text("a file where the folder should be")
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("NUMBA_CACHE_DIR", None)
    done = call("run", path, "-a", "v2", env=environment)
    assert done.returncode == 0
    assert "set XDG_CACHE_HOME to a folder of your own" in done.stderr
    assert len(done.stdout.splitlines()) == 2


def test_what_together_and_order_change_nothing_in(path: Path) -> None:
    recorded = CAPTURES / "pipeline.parquet"
    assert "--order names process 1, which 'pipeline' does not have" in line(
        call("run", recorded, "--together", "--order", "1")
    )
    assert "names a process twice" in line(call("run", recorded, "--together", "--order", "12678,12678"), 2)
    alone, together = (call("run", recorded, *options) for options in ([], ["--together"]))
    assert together.stdout == alone.stdout
    assert together.stderr.endswith(
        "note: 'pipeline' was captured at its exits, one after the other: --together changes nothing\n"
    )
    assert "--together and --order change nothing" in (
        call("run", recorded, "--together", "--order", "12678").stderr
    )
    assert "change" not in call("run", path, "--together").stderr


def test_safe_csv(tmp_path: Path) -> None:
    trace = trace_of([Piece(count=30)], 9)
    bad = trace.write(tmp_path / "=1+1.parquet")
    assert call("run", bad, "-a", "v2", "--csv-safe").stdout.splitlines()[1].startswith("'=1+1,")
    out = tmp_path / "out.csv"
    assert call("run", bad, "--what-if", "2", "--per", "trace", "-o", out, "--csv-safe").returncode == 0
    assert "'=1+1" in out.read_text()
    for words in (["--format", "json"], ["--format", "md"], ["-o", tmp_path / "out.json"]):
        assert "--csv-safe changes only CSV" in line(call("run", bad, "--csv-safe", *words), 2)


def test_an_empty_value_in_a_list_is_refused(path: Path) -> None:
    for words in (["--vary", "bundle=8,,3"], ["-a", "v2,,v1"], ["--what-if", "0,,3"]):
        assert "has an empty value between its commas" in line(call("run", path, *words), 2)


def test_some_processes() -> None:
    trace = replay.read_trace(MANY)
    pids = [space.pid for space in trace.meta.address_spaces][:2]
    options = [word for pid in pids for word in ("--pid", str(pid))]
    csv = call("run", MANY, *options, "-a", "v2").stdout
    assert pl.read_csv(csv.encode())["pid"].to_list() == pids
    assert "all 2" in on_terminal("run", MANY, "--per", "mm", *options)
    assert "no process 1 in these traces" in line(call("run", MANY, "--pid", "1"))
    assert "cannot sort by 'speed'" in line(
        call("run", MANY, "--per", "mm", "--format", "table", "--sort", "speed"), 2
    )
