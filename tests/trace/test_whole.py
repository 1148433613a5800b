"""Files appear whole or not at all, with and without names for what is not whole."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from replay.errors import ReplayError
from replay.support.atomic_file import atomic_file


@pytest.fixture(params=["nameless", "named"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """As the file system has it, and as one does that lacks O_TMPFILE (NFS, FAT)."""
    really_open = os.open

    def without(path, flags, *rest, **more):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return really_open(path, flags, *rest, **more)

    if request.param == "named":
        monkeypatch.setattr(os, "open", without)
    return request.param


def test_appears_at_the_end(kind: str, tmp_path: Path):
    target = tmp_path / "a"
    with atomic_file(target) as file:
        file.write(b"all")
        file.flush()
        assert not target.exists()
        assert len(list(tmp_path.iterdir())) == (kind == "named")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert target.read_bytes() == b"all"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


def test_replaces_only_if_told_to(kind: str, tmp_path: Path):
    target = tmp_path / "a"
    target.write_text("before")
    with pytest.raises(ReplayError, match="exists"):
        atomic_file(target)
    with atomic_file(target, force=True) as file:
        file.write(b"after")
        assert target.read_text() == "before"
    assert target.read_text() == "after"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_does_not_replace_what_appeared_meanwhile(kind: str, tmp_path: Path):
    target = tmp_path / "a"
    with pytest.raises(ReplayError, match="made by someone else"), atomic_file(target) as file:
        file.write(b"mine")
        target.write_text("theirs")
    assert target.read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_nothing_is_left_after_an_error(kind: str, tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), atomic_file(tmp_path / "a") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_when_killed(tmp_path: Path):
    code = (
        "import os, signal, sys; from replay.support.atomic_file import atomic_file\n"
        "with atomic_file(sys.argv[1]) as file:\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    try:
        os.close(os.open(tmp_path, os.O_TMPFILE | os.O_RDWR))
    except OSError:
        pytest.skip(f"the file system of {tmp_path} has no O_TMPFILE")
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], check=False).returncode == -9
    assert list(tmp_path.iterdir()) == []
