# SPDX-License-Identifier: Apache-2.0
"""`replay inspect`: what is mapped, as tables and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

import replay
from tests.commands.running import CAPTURES, call

MANY = CAPTURES / "postgresql-run.parquet"


def test_inspect(path: Path):
    done = call("inspect", path)
    assert done.returncode == 0
    assert "Folios by order" in done.stdout
    document = json.loads(call("inspect", path, "--json").stdout)
    assert document["metadata"]["page_size"] == 4096
    orders = {row["order"]: row for row in document["orders"]}
    assert (orders[3]["folios"], orders[3]["whole"], orders[3]["pages"]) == (10, 10, 80)
    assert sum(row["pages"] for row in document["sharing"]) == 110


def test_inspect_answers_first() -> None:
    path = CAPTURES / "numpy-32k.parquet"
    trace = replay.read_trace(path)
    mapped = trace.frame.filter(pl.col("kind").cast(str) == "page")
    share = mapped.filter(pl.col("order") > 0)["pages"].sum() / mapped["pages"].sum() * 100
    shown = call("inspect", path).stdout.splitlines()
    assert shown[0] == f"in large folios: {share:.1f} % of 288 MiB (anonymous 97.2 %, file 7.8 %)"
    # the same order where files have more pages than anonymous memory
    assert "(anonymous 0.0 %, file" in call("inspect", CAPTURES / "pipeline.parquet").stdout.splitlines()[0]
    assert "mode live (captured while running)" in "\n".join(shown)
    document = json.loads(call("inspect", path, "--json").stdout)
    assert document["in_large_folios"]["all"][0]["share_pct"] == pytest.approx(share)
    several = json.loads(call("inspect", MANY, "--json").stdout)["processes"]
    assert sum(row["pages"] for row in several) == sum(row["pages"] for row in several if row["pid"])
    assert len(several) == 34
