"""Machine code: as the Python it is made of; kept for the user alone; made anew where it does not fit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from replay.capture import folios, runs
from replay.native import function, image

REPOSITORY = Path(__file__).resolve().parent.parent.parent

PROGRAM = """
import numpy as np
from replay.capture import folios
start, end = folios.pieces_of(np.array([1, 2, 9, 40]), np.array([1, 3, 1, 2], np.int32), 4)
print(start.tolist(), end.tolist())
"""
EXPECTED = "[1, 40] [10, 42]\n"


def run(cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """What a fresh process makes of `PROGRAM` with this cache folder."""
    variables = {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(REPOSITORY)}
    variables.pop("NUMBA_DISABLE_JIT", None)
    variables |= environment
    return subprocess.run(
        [sys.executable, "-c", PROGRAM], env=variables, capture_output=True, text=True, check=True
    )


jitted = pytest.mark.skipif(
    bool(os.environ.get("NUMBA_DISABLE_JIT")) or os.uname().machine not in image.MACHINES,
    reason="no images here",
)


@jitted
def test_compiled_once_and_kept_for_the_user_alone(tmp_path: Path) -> None:
    first = run(tmp_path)
    assert (first.stdout, first.stderr.count("compiling")) == (EXPECTED, 1)
    (file,) = (tmp_path / "replay").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    again = run(tmp_path)
    assert (again.stdout, again.stderr) == (EXPECTED, "")
    # what another could have written is not run
    file.chmod(0o620)
    assert "compiling" in run(tmp_path).stderr
    assert file.stat().st_mode & 0o777 == 0o600
    # nor what was cut, or is of other sources
    content = file.read_bytes()
    for damaged in (b"", content[:100], content[:-100], content.replace(b"folios.py", b"folios.qy")):
        file.write_bytes(damaged)
        done = run(tmp_path)
        assert (done.stdout, "compiling" in done.stderr) == (EXPECTED, True)
    assert file.read_bytes() == content


@jitted
def test_no_place_for_it(tmp_path: Path) -> None:
    (tmp_path / "replay").write_text("a file where the folder should be")
    done = run(tmp_path)
    assert done.stdout == EXPECTED
    remedy = "set XDG_CACHE_HOME to a folder of your own"
    assert done.stderr.splitlines()[1:] == [
        f"replay: cannot keep what was compiled in {tmp_path}/replay: {remedy}"
    ]


def test_without_jit(tmp_path: Path) -> None:
    done = run(tmp_path, NUMBA_DISABLE_JIT="1")
    assert (done.stdout, done.stderr, list(tmp_path.iterdir())) == (EXPECTED, "", [])


@jitted
def test_on_other_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where images cannot be made, numba's own functions do the work."""
    from replay.native.compile import in_process

    function.prepare()
    ready = in_process(*function.all_functions())
    name = f"{folios.__name__}._join"
    frames, sizes = np.array([1, 2, 9, 40]), np.array([1, 3, 1, 2], np.int32)
    start, end = np.zeros(4, np.int64), np.zeros(4, np.int64)
    assert ready[name](frames, sizes, 4, start, end) == 2
    assert (start[:2].tolist(), end[:2].tolist()) == ([1, 40], [10, 42])


@jitted
@pytest.mark.parametrize(
    "change",
    [lambda a: a.astype(np.int32), lambda a: a.reshape(1, -1), lambda a: np.repeat(a, 2)[::2]],
    ids=["type", "dimensions", "order"],
)
def test_wrong_arrays_are_refused(change: Callable[[np.ndarray], np.ndarray]) -> None:
    frames, sizes = np.arange(4), np.ones(4, np.int32)
    with pytest.raises(TypeError, match="_join: not a 1-d array of int64 in C order"):
        folios._join(change(frames), sizes, 0, np.zeros(4, np.int64), np.zeros(4, np.int64))


def test_every_marked_function_is_found() -> None:
    """A module that is left out of the list would be compiled in some processes only."""
    marked = {
        f"replay.{'.'.join(path.relative_to(REPOSITORY / 'replay').with_suffix('').parts)}"
        for path in (REPOSITORY / "replay").rglob("*.py")
        if "\n@native\n" in path.read_text()
    }
    assert marked == set(function.MODULES)
    assert {module.partition(".")[2].partition(".")[0] for module in marked} <= set(function.SOURCES)
    assert isinstance(runs._find_runs, function.Native)
