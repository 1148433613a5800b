# SPDX-License-Identifier: Apache-2.0
"""Sweeps: parts that are equal whoever makes them, restarts, broken traces, killed workers, object stores."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import pyarrow.fs as pafs
import pytest

import replay
from replay.errors import ReplayError
from replay.fleet import parts, sources
from replay.fleet.sweep import FAILURES, options_text, sweep
from replay.teardown.algorithms import ALGORITHMS
from replay.teardown.variants import encoded
from tests.teardown.address_spaces import Piece, trace_of

CAPTURES = Path(__file__).parents[2] / "captures"

OPTIONS = options_text([encoded(ALGORITHMS[name]) for name in ("baseline", "v2")], None)


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    folder = tmp_path / "traces"
    folder.mkdir()
    for number in range(4):
        trace_of([Piece(order=number, count=20 + number)], 3).write(folder / f"t{number}.parquet")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_parts_are_the_same_with_one_worker_or_two(traces: Path, tmp_path: Path) -> None:
    found = sources.find([str(traces)])
    for jobs in (1, 2):
        swept = sweep(found, tmp_path / f"parts{jobs}", OPTIONS, jobs=jobs)
        assert (swept.traces, swept.failures) == (4, {})
    assert content(tmp_path / "parts1") == content(tmp_path / "parts2")
    alone = replay.run(replay.read_trace(traces / "t2.parquet"), ["baseline", "v2"])
    together = parts.read_all(tmp_path / "parts1")
    assert together.filter(together["trace"] == "t2").select(alone.columns).equals(alone)


def test_a_restart_skips_what_is_finished_and_unchanged(traces: Path, tmp_path: Path) -> None:
    out = tmp_path / "parts"
    sweep(sources.find([str(traces)]), out, OPTIONS, jobs=1)
    part = parts.path_of(out, sources.find([str(traces / "t1.parquet")])[0])
    part.write_bytes(part.read_bytes()[:100])
    trace_of([Piece(count=7)], 3).write(traces / "t3.parquet", force=True)
    swept = sweep(sources.find([str(traces)]), out, OPTIONS, jobs=1)
    assert (swept.traces, swept.skipped) == (2, 2)
    other = sweep(sources.find([str(traces)]), out, options_text([encoded(ALGORITHMS["v2"])], None), jobs=1)
    assert other.skipped == 0


def test_a_broken_trace_is_a_row_of_failures(traces: Path, tmp_path: Path) -> None:
    broken = traces / "t0.parquet"
    broken.write_bytes(broken.read_bytes()[:500])
    out = tmp_path / "parts"
    swept = sweep(sources.find([str(traces)]), out, OPTIONS, jobs=2)
    assert (swept.traces, list(swept.failures)) == (3, [str(broken)])
    [row] = csv.DictReader((out / FAILURES).open())
    assert row["trace"] == str(broken) and "cut or damaged" in row["error"]
    trace_of([Piece(count=9)], 3).write(broken, force=True)
    assert sweep(sources.find([str(traces)]), out, OPTIONS, jobs=1).traces == 1
    assert not (out / FAILURES).exists()


def test_a_trace_that_lost_address_spaces_is_a_row_of_failures(tmp_path: Path) -> None:
    """The note of a run would be lost among thousands."""
    whole = replay.read_trace(CAPTURES / "pipeline.parquet")
    one = dataclasses.replace(whole, frame=whole.frame.filter(whole.frame["mm"] == 5))
    path = one.write(tmp_path / "lost.parquet")
    swept = sweep(sources.find([str(path)]), tmp_path / "parts", OPTIONS, jobs=1)
    assert swept.traces == 0
    assert "10 of 11 address spaces" in swept.failures[str(path)]
    whole.as_part(one.frame).write(path, force=True)
    assert sweep(sources.find([str(path)]), tmp_path / "parts", OPTIONS, jobs=1).traces == 1


def test_an_object_store(traces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "testing")
        query = f"?endpoint_override={host}:{port}&scheme=http&region=us-east-1&allow_bucket_creation=true"
        system, _ = pafs.FileSystem.from_uri(f"s3://traces/{query}")
        system.create_dir("traces")
        for path in traces.iterdir():
            with system.open_output_stream(f"traces/day/{path.name}") as out:
                out.write(path.read_bytes())
        found = sources.find([f"s3://traces/day/*.parquet{query}"])
        assert [source.name for source in found] == ["t0", "t1", "t2", "t3"]
        assert found == sources.find([f"s3://traces/day{query}"])
        swept = sweep(found, tmp_path / "remote", OPTIONS, jobs=1)
        assert (swept.traces, swept.failures) == (4, {})
        sweep(sources.find([str(traces)]), tmp_path / "near", OPTIONS, jobs=1)
        assert parts.read_all(tmp_path / "remote").equals(parts.read_all(tmp_path / "near"))
    finally:
        server.stop()
    with pytest.raises(ReplayError, match="cannot read s3://traces/day"):
        sources.find([f"s3://traces/day{query}"])


def test_parts_of_other_options_are_refused_before_anything_is_written(traces: Path, tmp_path: Path) -> None:
    out = tmp_path / "parts"
    sweep(sources.find([str(traces)]), out, OPTIONS, jobs=1)
    before = content(out)
    one = sources.find([str(traces / "t1.parquet")])
    with pytest.raises(ReplayError, match="was made with other options: sweep into an empty folder"):
        sweep(one, out, options_text([encoded(ALGORITHMS["v1"])], None), jobs=1)
    assert content(out) == before


def test_a_folder_that_takes_no_file_is_told_before_anything_is_replayed(
    traces: Path, tmp_path: Path
) -> None:
    (tmp_path / "parts" / FAILURES).mkdir(parents=True)
    with pytest.raises(ReplayError, match="it is a folder"):
        sweep(sources.find([str(traces)]), tmp_path / "parts", OPTIONS, jobs=1)
    assert [path.name for path in (tmp_path / "parts").iterdir()] == [FAILURES]


def test_a_folder_of_traces_is_no_folder_of_parts(traces: Path) -> None:
    with pytest.raises(ReplayError, match=r"name its traces \(.*\*\.parquet\)"):
        parts.read_all(traces)
