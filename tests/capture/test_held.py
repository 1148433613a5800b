# SPDX-License-Identifier: Apache-2.0
"""How long a process stands still: while its words are read, and no longer."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from replay.capture import address_space
from replay.capture.live import capture_cgroup, capture_process
from replay.process import stop
from tests.capture import processes
from tests.capture.processes import needs_root, program

pytestmark = needs_root()

SECONDS = 0.3

PANDAS = """
import os, pathlib
pathlib.Path(os.environ["SEEN"]).touch()
__version__ = "0.1"  # too old to be used
"""

IMPORTS = """
import sys
from pathlib import Path
from replay.commands.output import load_numpy
load_numpy()
from replay.capture import live
stat, state, out, call, argument = Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[5]
looking = False
def hook(event, arguments):
    global looking
    if event == "import" and not looking:
        looking = True
        if state in stat.read_text().split("\\n" if state == "frozen 1" else None):
            print(arguments[0])
        looking = False
sys.addaudithook(hook)
done = getattr(live, call)(int(argument) if argument.isdigit() else argument, out)
print("extents", done.extents > 0)
"""


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """An empty cgroup of version 2."""
    root = next((path for path in stop.HIERARCHIES if (path / "cgroup.controllers").exists()), None)
    if root is None:
        pytest.skip("cgroup v2 is not mounted")
    path = root / f"replay-held-{os.getpid()}"
    path.mkdir()
    yield path
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            return path.rmdir()
        except OSError:
            time.sleep(0.01)


def slowly(monkeypatch: pytest.MonkeyPatch, name: str, before: list[str], pid: int) -> None:
    """Make a step of a capture take `SECONDS` longer; `before`: filled with the process's state then."""
    real = getattr(address_space, name)

    def slow(*arguments: object) -> object:
        time.sleep(SECONDS)
        before.append(processes.state(pid))
        return real(*arguments)

    monkeypatch.setattr(address_space, name, slow)


WATCHES_ITS_CLOCK = """
last, longest, until = time.monotonic(), 0, time.monotonic() + 5
print(1, flush=True)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.001)
    now = time.monotonic()
    longest, last = max(longest, now - last), now
open(sys.argv[1], "w").write(str(longest * 1000))
"""


def test_held_while_it_is_read_and_no_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The target's own clock, the trace, and what each step sees agree."""
    end, reading, building = tmp_path / "end", list[str](), list[str]()
    code = processes.PRELUDE + WATCHES_ITS_CLOCK
    with subprocess.Popen([sys.executable, "-c", code, str(end)], stdout=subprocess.PIPE) as child:
        assert child.stdout and child.stdout.readline() == b"1\n"
        slowly(monkeypatch, "_check_places", reading, child.pid)
        slowly(monkeypatch, "rows_of", building, child.pid)
        done = capture_process(child.pid, tmp_path / "t.parquet")
        end.touch()
        child.wait()
    assert reading == ["t"] and building and "t" not in building
    held = done.meta.address_spaces[0].held_ms
    own = float(end.read_text())
    assert SECONDS * 1000 <= held < 2 * SECONDS * 1000
    # it starts to run somewhat later than it is let go
    assert held - 5 <= own < 2 * SECONDS * 1000


def test_a_cgroup_is_thawed_when_all_is_read(
    cgroup: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from replay.capture.collect import Sink

    frozen: list[bool] = []
    close = Sink.close

    def noted(sink: Sink, meta: object) -> None:
        frozen.append("frozen 1" in (cgroup / "cgroup.events").read_text())
        close(sink, meta)  # type: ignore[arg-type]

    monkeypatch.setattr(Sink, "close", noted)
    with program("ready(0)") as (one, _), program("ready(0)") as (two, _):
        for pid in (one, two):
            (cgroup / "cgroup.procs").write_text(str(pid))
        slowly(monkeypatch, "_check_places", [], one)
        done = capture_cgroup(cgroup, tmp_path / "t.parquet")
    assert frozen == [False]
    # both stand still while each is read
    times = {space.held_ms for space in done.meta.address_spaces}
    assert len(done.meta.address_spaces) == 2 and len(times) == 1 and min(times) >= 2 * SECONDS * 1000


def imports_while_held(shows: Path, state: str, out: Path, call: str, argument: str) -> list[str]:
    command = [sys.executable, "-c", IMPORTS, str(shows), state, str(out), call, argument]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *imports, last = done.stdout.splitlines()
    assert last == "extents True"
    return imports


def test_nothing_is_imported_while_a_process_is_held(tmp_path: Path) -> None:
    with program("ready(0)") as (pid, _):
        stat = Path(f"/proc/{pid}/stat")
        assert imports_while_held(stat, "t", tmp_path / "t.parquet", "capture_process", str(pid)) == []


def test_nothing_is_imported_while_a_cgroup_is_frozen(cgroup: Path, tmp_path: Path) -> None:
    with program("ready(0)") as (pid, _):
        (cgroup / "cgroup.procs").write_text(str(pid))
        events = cgroup / "cgroup.events"
        out = tmp_path / "t.parquet"
        assert imports_while_held(events, "frozen 1", out, "capture_cgroup", str(cgroup)) == []


@pytest.mark.parametrize("command", ["capture", "capture --all", "record"])
def test_pandas_is_never_loaded(command: str, tmp_path: Path) -> None:
    """pyarrow loads it where it is installed, which takes longer than a capture."""
    (tmp_path / "pandas").mkdir()
    (tmp_path / "pandas" / "__init__.py").write_text(PANDAS)
    seen = tmp_path / "seen"
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "SEEN": str(seen)}
    with program("ready(0)") as (pid, _):
        what = {"capture": [str(pid)], "record": ["--", "true"]}.get(command, [])
        words = [*command.split(), "-o", str(tmp_path / "t.parquet"), *what]
        subprocess.run(
            [sys.executable, "-m", "replay", *words], env=environment, check=True, capture_output=True
        )
    assert (tmp_path / "t.parquet").exists() and not seen.exists()
    # the test can fail: this is what would load it
    one = [sys.executable, "-c", "import pyarrow; pyarrow.array(['text'])"]
    subprocess.run(one, env=environment, check=True, cwd=tmp_path)
    assert seen.exists()
