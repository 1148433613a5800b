# SPDX-License-Identifier: Apache-2.0
"""What the tests of commands share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands.running import small_trace


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A small trace."""
    return small_trace(tmp_path / "some.parquet")
