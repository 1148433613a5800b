# SPDX-License-Identifier: Apache-2.0
"""A calibration is kept, read and refused; time is costs times counts; exits are measured for real."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

import replay
from replay.cost import calibration as kept
from replay.errors import ReplayError
from replay.teardown import replayer
from tests.teardown.address_spaces import Piece, trace_of

MADE_UP = kept.Calibration(
    machine="m",
    kernel="6.18.0",
    algorithm="baseline",
    costs={"ptes": 10e-9, "folios_freed": 200e-9, "vmas": 1e-6},
    low={},
    high={},
    error_median=0.05,
    error_high=0.1,
    exits=20,
    held_out=12,
    measured_at="",
)


def test_time_is_the_costs_times_the_counts() -> None:
    trace = trace_of([Piece(count=100), Piece(order=3, count=80)], 9)
    results = replay.run(trace, ["baseline", "v2"])
    of_each = kept.of_rows(trace.frame)
    expected = [
        row["ptes"] * 10e-9 + row["folios_freed"] * 200e-9 + trace.frame["vma"].n_unique() * 1e-6
        for row in results.iter_rows(named=True)
    ]
    np.testing.assert_allclose(kept.seconds(results, of_each, MADE_UP), expected)


def test_the_figures_of_a_replay_say_the_same_as_the_rows() -> None:
    path = Path(__file__).parents[2] / "captures" / "postgresql.parquet"
    figures = replayer.replayed_file(path, []).figures
    assert figures is not None
    assert kept.of_figures(figures).equals(kept.of_rows(replay.read_trace(path).frame))


def test_kept_and_read(tmp_path: Path) -> None:
    path = kept.target(tmp_path / "c.json")
    kept.write(MADE_UP, path)
    assert kept.read(path) == MADE_UP


def test_only_our_own_folder_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert kept.target(None).parent == tmp_path / "data" / "replay"
    assert (tmp_path / "data" / "replay").is_dir()
    with pytest.raises(ReplayError, match=r"there is no folder .*none: make it first"):
        kept.target(tmp_path / "none" / "c.json")


def test_errors_of_real_programs_are_those_that_readme_tells() -> None:
    low, high = re.findall(r"\d+", kept.OFF_FOR_PROGRAMS)
    readme = " ".join((Path(__file__).parents[2] / "README.md").read_text().split())
    assert f"error of each program was between {low} and {high} %, nearly always too low" in readme


def test_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    with pytest.raises(ReplayError, match=r"no calibration of this machine and kernel: .*replay calibrate"):
        kept.read()
    kept.write(MADE_UP, kept.target(None).with_name(f"calibration-{kept.machine()}-6.1.0.json"))
    with pytest.raises(ReplayError, match="is of another kernel"):
        kept.read()
    damaged = tmp_path / "damaged.json"
    for text in ("", "[]", "{}", json.dumps(dataclasses.asdict(MADE_UP) | {"version": 0})):
        damaged.write_text(text)
        with pytest.raises(ReplayError, match="is no calibration"):
            kept.read(damaged)
