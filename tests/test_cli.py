# SPDX-License-Identifier: Apache-2.0
"""The command line: start-up, help, wrong usage, streams that cannot be written."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import replay
from tests.commands.running import CAPTURES, REPLAY, call, small_trace

REDIS = str(CAPTURES / "redis.parquet")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return small_trace(tmp_path / "some.parquet")


def test_help_is_quick():
    """By the processor's time, of which other tests take nothing away."""
    call("--help")
    best = 9.0
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert call("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    # 0.07 s alone on the machine that it was written on
    assert best < 0.3


def test_help_loads_nothing_heavy():
    heavy = {"polars", "pyarrow", "numba", "numpy", "rich", "altair"}
    code = f"import sys, replay.cli; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        # pyarrow is loaded while the first words are read
        (
            "replay.recording.recorder, replay.capture.live, replay.report.notes",
            {"pyarrow", "polars", "numba"},
        ),
        ("replay.capture.collect, replay.recording.encoder", {"polars", "numba"}),
    ],
)
def test_capture_loads_neither_polars_nor_numba(modules: str, heavy: set[str]):
    code = f"import sys, {modules}; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_wrong_usage_is_status_2(path: Path):
    assert call("run").returncode == 2
    assert call("replay").returncode == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "none.parquet"],
        ["run", REDIS, "-a", "none.toml"],
        ["run", REDIS, "--pid", "3"],
        ["run", REDIS, "--together", "--order", "3"],
        ["run", REDIS, "-o", REDIS],
        ["diff", REDIS, "none.csv"],
        ["inspect", "none.parquet"],
        ["report", "none.parquet"],
        ["sweep", "none.parquet", "-o", "parts"],
        ["sweep", "*.none", "-o", "parts"],
        ["trim", REDIS, "--pid", "3", "-o", "part.parquet"],
        ["capture", "999999999"],
        ["capture", "nosuchprog"],
        ["capture", "999999998", "999999999"],
        ["run", str(CAPTURES / "pipeline.parquet"), "--together", "--order", "1"],
    ],
)
def test_a_world_that_is_not_as_asked_is_status_1(arguments: list[str], tmp_path: Path) -> None:
    done = call(*arguments, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("replay: ")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["run"], "missing argument 'TRACE...': see 'replay run --help'"),
        (["run", REDIS, "--top", "few"], "invalid value for '--top': 'few' is not a whole number: see"),
        (["capture", "1", "--nothing"], "no such option: --nothing: see 'replay capture --help'"),
        (["whatif", REDIS, "-o"], "option '-o' requires an argument: see 'replay whatif --help'"),
        (["nothing"], "no such command 'nothing': see 'replay --help'"),
        (["rn"], "no such command 'rn' (did you mean 'run'?): see 'replay --help'"),
        (["calibrate", "--runs", "0"], "invalid value for '--runs': 0 is too small, give at least 1: see"),
    ],
)
def test_a_wrong_command_line_is_told_in_one_line(arguments: list[str], line: str) -> None:
    done = call(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(f"replay: {line}")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"), reason="nothing is compiled")
def test_control_c_while_loops_are_compiled_is_told_and_leaves_no_child(tmp_path: Path) -> None:
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    process = subprocess.Popen(
        [*REPLAY, "run", REDIS],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    with process:
        assert process.stderr
        assert process.stderr.readline().startswith("replay: compiling")
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not (found := children.read_text().split()):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == "replay: interrupted\n"
    assert process.returncode == 130
    end = time.monotonic() + 5
    while any(Path(f"/proc/{child}").exists() for child in found):
        assert time.monotonic() < end, f"{found} run on"
        time.sleep(0.01)


def test_without_arguments_the_help_is_shown() -> None:
    done = call()
    assert done.returncode == 2
    assert call("--help").stdout == done.stderr


def test_version():
    assert call("--version").stdout == f"replay {replay.__version__}\n"


@pytest.mark.parametrize(
    "command",
    [
        ["algorithms"],
        ["--help"],
        ["inspect", REDIS],
        ["doctor", "--json"],
        ["run", REDIS, "--format", "table"],
        ["diff", REDIS, REDIS, "-a", "v2"],
        ["diff", REDIS, "captures/nodejs.parquet", "-a", "v2"],
    ],
)
def test_a_reader_that_has_seen_enough_is_no_failure(command: list[str]) -> None:
    here, there = os.pipe()
    os.close(here)
    done = subprocess.run([*REPLAY, *command], stdout=there, stderr=subprocess.PIPE, check=False)
    os.close(there)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="no /dev/full")
@pytest.mark.parametrize(
    "command",
    [["algorithms"], ["--version"], ["run", "--help"], ["run", REDIS], ["inspect", REDIS]],
)
def test_a_full_disk_behind_standard_output_is_named(command: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*REPLAY, *command], stdout=full, stderr=subprocess.PIPE, check=False)
    said = [line for line in done.stderr.splitlines() if line.startswith(b"replay: ")]
    # the first test of a checkout may be the one that compiles
    said = [line for line in said if not line.startswith(b"replay: compiling")]
    assert done.returncode == 1
    assert said == [b"replay: cannot write to standard output: No space left on device"]


def test_a_closed_standard_output_is_no_failure() -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *REPLAY, "run", REDIS], stderr=subprocess.PIPE, check=False
    )
    assert done.returncode == 0 and b"cannot write" not in done.stderr


@pytest.mark.parametrize("value", ["0", "-1", "many", ""])
def test_a_setting_that_polars_would_panic_at_is_named(value: str, path: Path) -> None:
    done = call("run", path, env=os.environ | {"POLARS_MAX_THREADS": value})
    assert done.returncode == 2
    assert (
        done.stderr.startswith(f"replay: POLARS_MAX_THREADS={value}: expected")
        and "\n" not in done.stderr[:-1]
    )


def test_as_a_module() -> None:
    done = subprocess.run(
        [REPLAY[0], "-m", "replay", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"replay {replay.__version__}\n"
