# SPDX-License-Identifier: Apache-2.0
"""Shares and sums of what is mapped."""

from __future__ import annotations

import replay
from replay.report import inspect
from tests.commands.running import CAPTURES


def test_share_in_large_folios() -> None:
    rows = inspect.classified(replay.read_trace(CAPTURES / "numpy-thp.parquet"))
    found = inspect.in_large_folios(rows, ["type"]).sort("type")
    assert found.select("type", "large").rows() == [("anon", 63 * 512), ("file", 322)]
