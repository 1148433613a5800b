# SPDX-License-Identifier: Apache-2.0
"""`replay capture`: a saved process as a user captures it, and wrong usage."""

from __future__ import annotations

from pathlib import Path

import pytest

import replay
from tests.capture.trees import TRUTH, lay_out
from tests.commands.running import call, line


def test_a_saved_process_under_its_default_name(tmp_path: Path) -> None:
    pid, _ = lay_out(TRUTH / "6.12" / "anon_small", tmp_path / "proc")
    done = call("capture", pid, "--procfs", tmp_path / "proc", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    [made] = tmp_path.glob("replay-*.parquet")
    assert f"-{pid}-" in made.name
    assert f"next: replay run {made.name}" in done.stderr
    assert replay.read_trace(made).meta.address_spaces[0].pid == pid


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give processes, --cgroup PATH or --all"),
        (["1", "--all"], "only one of these"),
        (["1", "2", "--at-exit"], "--at-exit waits for one process"),
        (["1", "--at-exit", "--no-freeze"], "leave out --procfs and --no-freeze"),
    ],
)
def test_wrong_usage(arguments: list[str], says: str, tmp_path: Path) -> None:
    assert says in line(call("capture", *arguments, cwd=tmp_path), 2)
    assert not list(tmp_path.iterdir())
