# SPDX-License-Identifier: Apache-2.0
"""Results as files."""

from __future__ import annotations

import polars as pl

from replay.report import files


def test_names_that_are_formulas_are_made_text():
    frame = pl.DataFrame({"comm": ["=1+1", "+x", "-2", "@a", "bash", "a=b"], "ptes": [1, 2, 3, 4, 5, 6]})
    assert files.safe(frame)["comm"].to_list() == ["'=1+1", "'+x", "'-2", "'@a", "bash", "a=b"]
