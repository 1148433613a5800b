# SPDX-License-Identifier: Apache-2.0
"""Files appear whole or not at all, with and without names for what is not whole."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
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


def test_the_longest_name(kind: str, tmp_path: Path):
    target = tmp_path / ("a" * 255)
    with atomic_file(target) as file:
        file.write(b"all")
    assert target.read_bytes() == b"all"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["a" * 256, "\N{GREEK SMALL LETTER ALPHA}" * 128])
def test_a_name_too_long_is_noticed_before(name: str, tmp_path: Path):
    with pytest.raises(ReplayError, match="the name has 256 bytes, the file system takes 255"):
        atomic_file(tmp_path / name)
    with pytest.raises(ReplayError, match="File name too long"):
        atomic_file(tmp_path / ("b" * 300) / "a")


def test_nothing_is_recorded_under_a_name_too_long(tmp_path: Path):
    """Noticed before the command starts."""
    done = subprocess.run(
        [sys.executable, "-m", "replay", "record", "-o", f"{'a' * 300}.parquet", "--", "touch", "ran"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "choose a shorter one" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB, full but for 8 KiB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], check=False)
    if mounted.returncode:
        pytest.skip("no right to mount")
    (folder / "other").write_bytes(bytes(56 << 10))
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.skipif(os.getuid() != 0, reason="mounts a file system")
def test_a_full_file_system_is_noticed_before(kind: str, tiny: Path):
    with pytest.raises(ReplayError, match="No space left on device"):
        atomic_file(tiny / "a")
    assert [path.name for path in tiny.iterdir()] == ["other"]


@pytest.mark.skipif(os.getuid() != 0, reason="mounts a file system")
def test_a_file_system_that_cannot_be_written(kind: str, tiny: Path):
    subprocess.run(["mount", "-o", "remount,ro", tiny], check=True)
    with pytest.raises(ReplayError, match="Read-only file system"):
        atomic_file(tiny / "a")
