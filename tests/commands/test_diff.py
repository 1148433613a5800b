# SPDX-License-Identifier: Apache-2.0
"""`replay diff`: tables, thresholds, and what is neither trace nor result."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from replay.errors import ReplayError
from replay.report import diff
from tests.commands.running import CAPTURES, call, line, on_terminal

SMALL, LARGE = CAPTURES / "numpy.parquet", CAPTURES / "numpy-32k.parquet"


def test_command() -> None:
    shown = on_terminal("diff", SMALL, LARGE, columns=140)
    assert "copies of file pages" in shown
    assert "rss_anon" in shown
    assert "24,128" in shown
    document = json.loads(call("diff", SMALL, LARGE, "--json", "-a", "v2").stdout)
    assert {row["algorithm"] for row in document["counters"]} == {"v2"}
    assert call("diff", SMALL, SMALL).returncode == 0


@pytest.mark.parametrize(
    ("limits", "status"),
    [
        (["ptes=6%"], 0),
        (["ptes=5%"], 3),
        (["rmap_calls=5%"], 0),
        (["rmap_calls=0%", "rss=5%"], 3),
        (["rss=6%"], 0),
    ],
)
def test_thresholds(limits: list[str], status: int) -> None:
    # 5.1 % more PTEs; rmap calls of mainline fall
    options = [word for limit in limits for word in ("--fail-above", limit)]
    done = call("diff", SMALL, LARGE, "-a", "mainline", *options)
    assert done.returncode == status, done.stderr
    assert ("above the limit" in done.stderr) == (status == 3)


def test_bad_input(tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n")
    assert "is no result of 'replay run': it has no column 'algorithm'" in line(call("diff", other, SMALL))
    text = tmp_path / "README.md"
    text.write_text("no trace")
    assert "or a file of 'replay run -o'" in line(call("diff", SMALL, text))
    missing = tmp_path / "missing.csv"
    assert "no such file" in line(call("diff", SMALL, missing))
    assert "no such file" in line(call("diff", tmp_path / "missing.parquet", SMALL))
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    assert "cannot be read as json" in line(call("diff", SMALL, broken))
    assert "no counter 'speed'" in line(call("diff", SMALL, LARGE, "--fail-above", "speed=5%"), 2)
    assert "in bytes" in line(call("diff", SMALL, LARGE, "--fail-above", "locks"), 2)
    result = tmp_path / "result.csv"
    call("run", SMALL, "-a", "v2", "-o", result)
    assert "a result has no rss" in line(call("diff", result, result, "--fail-above", "rss=1%"), 2)
    with pytest.raises(ReplayError, match="no algorithm in common"):
        diff.counters(diff.load(result), diff.load(SMALL, ["mainline"]))
