# SPDX-License-Identifier: Apache-2.0
"""Where traces are: what cannot be found is one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from replay.errors import ReplayError
from replay.fleet import sources


def test_what_cannot_be_found_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ReplayError, match="no such file"):
        sources.find([str(tmp_path / "none.parquet")])
    with pytest.raises(ReplayError, match="no trace in"):
        sources.find([str(tmp_path / "*.parquet")])
    with pytest.raises(ReplayError, match="cannot read strange://bucket"):
        sources.find(["strange://bucket/x"])
