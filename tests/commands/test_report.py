# SPDX-License-Identifier: Apache-2.0
"""`replay report`: pages, pictures, wrong usage."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.commands.running import CAPTURES, call, line


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_a_picture_alone(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"picture.{ending}"
    assert call("report", CAPTURES / "pipeline.parquet", "-o", path, "--what-if", "0,3").returncode == 0
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG" if ending == "png" else b"<svg")
    assert len(content) < 500_000


def test_bad_input(tmp_path: Path) -> None:
    trace = CAPTURES / "pipeline.parquet"
    assert "let it end in .html, .svg, .png" in line(call("report", trace, "-o", tmp_path / "x.pdf"), 2)
    (tmp_path / "x.html").write_text("mine")
    assert "exists" in line(call("report", trace, "-o", tmp_path / "x.html"))
    assert "no folios of order 1" in line(
        call("report", trace, "-o", tmp_path / "y.html", "--what-if", "1"), 2
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    (tmp_path / "altair.py").write_text("raise ImportError")
    missing = call("report", trace, "-o", tmp_path / "y.html", env=environment)
    assert "pip install 'mm-replay[html]'" in line(missing)
    assert not (tmp_path / "y.html").exists()
