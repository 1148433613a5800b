# SPDX-License-Identifier: Apache-2.0
"""A process is named by its PID or by its name."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import replay
from replay.commands.naming import process_number
from replay.errors import ReplayError
from tests.capture.processes import needs_root
from tests.commands.running import CAPTURES, call, line

REDIS = CAPTURES / "redis.parquet"


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """Two processes of one name, longer than the kernel keeps."""
    name = f"sleeper-of-{os.getpid()}-for-replay"
    program = tmp_path / name
    shutil.copy(shutil.which("sleep") or "/bin/sleep", program)
    children = [subprocess.Popen([program, "600"]) for _ in range(2)]
    try:
        yield name, children
    finally:
        for child in children:
            child.kill()
            child.wait()


def test_a_name_for_a_pid(sleeper: tuple[str, list[subprocess.Popen[bytes]]]) -> None:
    name, children = sleeper
    pids = sorted(child.pid for child in children)
    with pytest.raises(
        ReplayError, match=f"2 processes are called '{name}': give one PID of {pids[0]}, {pids[1]}"
    ):
        process_number(Path("/proc"), name)
    children[0].kill()
    children[0].wait()
    assert process_number(Path("/proc"), name) == children[1].pid
    assert process_number(Path("/proc"), "123") == 123
    with pytest.raises(ReplayError, match="no process is called 'no-such-process': 'ps -e' lists"):
        process_number(Path("/proc"), "no-such-process")


@pytest.mark.parametrize(
    "words",
    [
        ["capture", "1", "-o"],
        ["record", "-o", "t.csv", "--", "touch", "ran"],
        ["whatif", REDIS, "--order", "3", "-o"],
        ["trim", REDIS, "--vma", "anon", "-o"],
        ["redact", REDIS],
    ],
)
def test_a_trace_is_named_as_a_parquet_file_and_its_folder_is_there(
    words: list[str | Path], tmp_path: Path
) -> None:
    for name, says, status in (
        ("t.csv", "a trace is a Parquet file: let the name 't.csv' end in .parquet", 2),
        ("none/t.parquet", "there is no folder none: make it first", 1),
    ):
        given = [name if word == "t.csv" else word for word in words]
        done = call(*given, *([] if name in given else [name]), cwd=tmp_path)
        assert says in line(done, status)
    assert not list(tmp_path.iterdir())


@needs_root()
def test_capture_by_name(sleeper: tuple[str, list[subprocess.Popen[bytes]]], tmp_path: Path) -> None:
    name, children = sleeper
    assert "2 processes are called" in line(call("capture", name, "-o", tmp_path / "x.parquet"))
    children[0].kill()
    children[0].wait()
    done = call("capture", name, "-o", tmp_path / "x.parquet")
    assert done.returncode == 0, done.stderr
    [space] = replay.read_trace(tmp_path / "x.parquet").meta.address_spaces
    assert space.pid == children[1].pid
