# SPDX-License-Identifier: Apache-2.0
"""The commands as a user calls them: what goes where, exit statuses, messages of one line."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import pty
import shlex
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

import replay
from replay.report.compare import compare, total
from replay.teardown.algorithms import ALGORITHMS
from replay.teardown.counters import COUNTERS
from tests.capture.trees import TRUTH, lay_out
from tests.teardown.address_spaces import Piece, trace_of

REPLAY = (sys.executable, "-m", "replay.cli")


def call(*arguments: object, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*REPLAY, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False, **options
    )


def on_terminal(*arguments: object, columns: int = 100) -> str:
    """What the command shows on a terminal."""
    here, there = pty.openpty()
    environment = os.environ | {"COLUMNS": str(columns), "TERM": "dumb", "NO_COLOR": "1"}
    process = subprocess.Popen(
        [*REPLAY, *map(str, arguments)], stdout=there, stderr=subprocess.DEVNULL, env=environment
    )
    os.close(there)
    shown = b""
    while True:
        try:
            part = os.read(here, 1 << 16)
        except OSError:
            break
        if not part:
            break
        shown += part
    os.close(here)
    assert process.wait(60) == 0
    return shown.decode().replace("\r\n", "\n")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return trace_of([Piece(order=3, count=80), Piece(count=30)], 9).write(tmp_path / "some.parquet")


def line(done: subprocess.CompletedProcess[str], status: int = 1) -> str:
    """The one line of an error."""
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    [message] = done.stderr.splitlines()
    assert message.startswith("replay: ")
    return message


def test_help_is_quick():
    call("--help")
    best = 9.0
    for _ in range(5):
        began = time.perf_counter()
        assert call("--help").returncode == 0
        best = min(best, time.perf_counter() - began)
    # 0.07 s alone on the machine that it was written on; other tests run beside this one
    assert best < 0.5


def test_help_loads_nothing_heavy():
    heavy = {"polars", "pyarrow", "numba", "numpy", "rich", "altair"}
    code = f"import sys, replay.cli; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        # pyarrow is loaded while the first words are read
        (
            "replay.recording.recorder, replay.capture.live, replay.report.notes",
            {"pyarrow", "polars", "numba"},
        ),
        ("replay.capture.collect, replay.recording.encoder", {"polars", "numba"}),
    ],
)
def test_capture_loads_neither_polars_nor_numba(modules: str, heavy: set[str]):
    code = f"import sys, {modules}; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    "command", ["", "capture", "record", "run", "inspect", "algorithms", "validate", "doctor"]
)
def test_every_command_has_help(command: str):
    done = call(*command.split(), "--help")
    assert done.returncode == 0
    assert "Usage: " in done.stdout


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
    assert "machine and reference agree in 3 of 3 replays of 1 of 1 address spaces" in done.stderr


def test_a_reader_that_stops_reading(path: Path):
    done = subprocess.run(
        f"{' '.join(REPLAY)} run {path} | head -c 10", shell=True, capture_output=True, text=True, check=False
    )
    assert done.stdout == "trace,mm,p"
    assert done.stderr == ""


def test_run_says_what_is_wrong(path: Path, tmp_path: Path):
    assert "unknown algorithm 'v3': choose from baseline" in line(call("run", path, "-a", "v3"), 2)
    assert "let it end in .csv" in line(call("run", path, "-o", tmp_path / "out.xls"), 2)
    assert "'gather' or 'rcu'" in line(call("run", path, "--page-tables", "ipi"), 2)
    assert "no such file" in line(call("run", tmp_path / "none.parquet"))
    assert "cannot write" in line(call("run", path, "-o", tmp_path / "none" / "out.csv"))
    assert not (tmp_path / "none").exists()


def test_wrong_usage_is_status_2(path: Path):
    assert call("run").returncode == 2
    assert call("capture", "one").returncode == 2
    assert call("replay").returncode == 2


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


def test_inspect(path: Path):
    done = call("inspect", path)
    assert done.returncode == 0
    assert "Folios by order" in done.stdout
    document = json.loads(call("inspect", path, "--json").stdout)
    assert document["metadata"]["page_size"] == 4096
    orders = {row["order"]: row for row in document["orders"]}
    assert (orders[3]["folios"], orders[3]["whole"], orders[3]["pages"]) == (10, 10, 80)
    assert sum(row["pages"] for row in document["sharing"]) == 110


def test_algorithms():
    text = call("algorithms").stdout
    for name in ALGORITHMS:
        assert f"\n{name}: " in f"\n{text}"
    assert "20230830095011.1228673-1-ryan.roberts@arm.com" in text
    assert "Not modelled" in text
    document = json.loads(call("algorithms", "--json").stdout)
    assert list(document["counters"]) == list(COUNTERS)


def test_compare_against_nothing():
    frame = pl.DataFrame(
        [
            {
                "trace": "t",
                "mm": 0,
                "pid": 1,
                "comm": "c",
                "algorithm": name,
                **dict.fromkeys(COUNTERS, count),
            }
            for name, count in (("baseline", 0), ("v2", 3))
        ]
    )
    rows = compare(frame).select("locks_avoided", "locks_avoided_pct").rows()
    assert rows == [(0, 0.0), (-3, None)]
    doubled = total(pl.concat([frame, frame]))
    assert doubled.select("address_spaces", "locks", "gather_pages_peak").rows() == [(2, 0, 0), (2, 6, 3)]


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
        assert "cannot be made again" in line(call("run", path, "-o", target), status=2)
        assert target.read_bytes() == before
    out = tmp_path / "report.parquet"
    assert [call("run", path, "-o", out).returncode for _ in range(2)] == [0, 0]


@pytest.mark.parametrize("columns", [100, 80, 60, 40])
def test_no_number_is_cut(columns: int):
    trace = Path(__file__).parent.parent / "captures" / "build-32k.parquet"
    shown = on_terminal("run", trace, "-a", "v2", columns=columns)
    assert "1,753,993" in shown
    assert max(map(len, shown.splitlines())) <= columns
    assert ("no room for" in shown) == (columns < 80)


def test_names_do_not_steer_the_terminal(tmp_path: Path):
    trace = trace_of([Piece(count=3)], 9)
    name = "a[/b][red]:smile:\x1b[31m"
    spaces = tuple(dataclasses.replace(space, comm=name) for space in trace.meta.address_spaces)
    frame = trace.frame.with_columns(pl.lit(name).cast(pl.Categorical).alias("comm"))
    meta = dataclasses.replace(trace.meta, address_spaces=spaces)
    named = dataclasses.replace(trace, frame=frame, meta=meta)
    path = named.write(tmp_path / "x[bold]y.parquet")
    assert "x[bold]y: 1 address space" in on_terminal("run", path)
    assert "a[/b][red]:smile:\\x1b[31m" in on_terminal("run", path, "--per", "mm", columns=200)
    assert "a[/b][red]:smile:\\x1b[31m (1)" in on_terminal("inspect", path, columns=200)


def test_formats_and_parts(path: Path):
    assert "1 address space, 110 PTEs" in call("run", path, "--format", "table").stdout
    rows = json.loads(call("run", path, "--format", "json", "--per", "total", "-a", "v2", "-a", "v1").stdout)
    assert [(row["algorithm"], row["address_spaces"]) for row in rows] == [("v1", 1), ("v2", 1)]
    assert "no algorithm is named" in line(call("run", path, "-a", ""), status=2)


def test_version():
    assert call("--version").stdout == f"replay {replay.__version__}\n"


def test_the_machine_without_a_cache(path: Path, tmp_path: Path):
    (tmp_path / "replay").write_text("a file where the folder should be")
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("NUMBA_CACHE_DIR", None)
    done = call("run", path, "-a", "v2", env=environment)
    assert done.returncode == 0
    assert "set XDG_CACHE_HOME to a folder of your own" in done.stderr
    assert len(done.stdout.splitlines()) == 2


@pytest.mark.parametrize("command", [["algorithms"], ["--help"], ["inspect", "captures/redis.parquet"]])
def test_a_reader_that_has_seen_enough_is_no_failure(command: list[str]) -> None:
    here, there = os.pipe()
    os.close(here)
    done = subprocess.run([*REPLAY, *command], stdout=there, stderr=subprocess.PIPE, check=False)
    os.close(there)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="no /dev/full")
def test_a_full_disk_behind_standard_output_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*REPLAY, "algorithms"], stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("stderr", ["closed", "full", "gone"])
def test_notes_that_nobody_can_read_decide_nothing(stderr: str, path: Path, tmp_path: Path) -> None:
    """Their loss changes neither what is written nor the exit status."""
    out = tmp_path / "out.csv"
    command = shlex.join([*REPLAY, "run", str(path), "-o", str(out)])
    if stderr == "gone":
        here, there = os.pipe()
        os.close(here)
        done = subprocess.run(command, shell=True, stderr=there, check=False)
        os.close(there)
    else:
        done = subprocess.run(
            f"{command} 2>{'&-' if stderr == 'closed' else '/dev/full'}", shell=True, check=False
        )
    assert done.returncode == 0 and out.exists()


@pytest.mark.parametrize("value", ["0", "-1", "many", ""])
def test_a_setting_that_polars_would_panic_at_is_named(value: str, path: Path) -> None:
    done = call("run", path, env=os.environ | {"POLARS_MAX_THREADS": value})
    assert done.returncode == 2
    assert (
        done.stderr.startswith(f"replay: POLARS_MAX_THREADS={value}: expected")
        and "\n" not in done.stderr[:-1]
    )
