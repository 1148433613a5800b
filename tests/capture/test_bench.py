# SPDX-License-Identifier: Apache-2.0
"""`scripts/bench_capture` works: its programs, its rows, and the packages of its rivals."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.capture.processes import needs_root

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_capture"


@needs_root()
@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")
def test_rows() -> None:
    command = [sys.executable, str(SCRIPT), "--no-rivals", "--gib", "1", "--kinds", "pmd", "--runs", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 3), done.stderr
    rows = [line.split("  ")[1] for line in done.stdout.splitlines() if "target" in line]
    ours = ["capture / floor", "command - floor, s", "held, s", "peak memory, MiB", "bytes per page"]
    services = ["held, s"] * sum("stood still" in line for line in done.stdout.splitlines())
    assert rows == [*ours, "command, s", "peak memory, MiB", *services]
    held, own = re.findall(r"(?:held|own clock) ([0-9.]+) s", done.stdout)[:2]
    # the process starts to run somewhat later than it is let go
    assert float(held) - 0.005 <= float(own) < float(held) + 0.2


def test_rivals_are_looked_for_in_a_cache_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but what needs the network."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    loader = importlib.machinery.SourceFileLoader("bench_capture", os.fspath(SCRIPT))
    spec = importlib.util.spec_from_loader("bench_capture", loader)
    assert spec
    bench = importlib.util.module_from_spec(spec)
    loader.exec_module(bench)
    from lab import packages

    updated: list[Path] = []
    monkeypatch.setattr(bench, "CACHE", tmp_path)
    monkeypatch.setattr(packages.Apt, "update", lambda apt: updated.append(apt.home))
    (tmp_path / "page-types").touch()
    tools = bench.rivals()
    assert updated == [tmp_path / "apt"] and (tmp_path / "apt" / "sources.list").exists()
    assert tools["page-types"][0] == str(tmp_path / "page-types")
