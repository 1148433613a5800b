# SPDX-License-Identifier: Apache-2.0
"""The cache of compiled code: whatever is wrong with it, figures are right, in one line more at most."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from replay.jit import cache

REPOSITORY = Path(__file__).resolve().parent.parent.parent
FIGURES = "-252 [109, 136] False\n"
REMEDY = "set XDG_CACHE_HOME to a folder of your own"
NOBODY = 2000

pytestmark = pytest.mark.skipif(
    os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"), reason="nothing is compiled"
)
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def run(
    folder: Path | None, *prefix: str, umask: int = 0o022, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """What a fresh process says with this cache folder."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    variables |= {"PYTHONPATH": str(REPOSITORY)}
    if folder is not None:
        variables |= {"XDG_CACHE_HOME": str(folder)}
    return subprocess.run(
        [*prefix, sys.executable, "-m", "tests.jit.program"],
        env=variables | (environment or {}),
        cwd=REPOSITORY,
        umask=umask,
        capture_output=True,
        text=True,
        check=False,
    )


def lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines for people of a process that gave the right figures."""
    assert (done.returncode, done.stdout) == (0, FIGURES), done.stderr
    return done.stderr.splitlines()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with the object of `sums`."""
    folder = tmp_path_factory.mktemp("made")
    assert lines(run(folder)) == ["replay: compiling its loops, once: a few seconds"]
    return folder


@pytest.fixture
def kept(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(made, tmp_path / "cache", copy_function=shutil.copy2)
    return tmp_path / "cache"


def the_object(folder: Path) -> Path:
    """The only file in a cache."""
    (file,) = (folder / "replay").iterdir()
    return file


def test_compiled_once_for_the_owner_alone(made: Path) -> None:
    assert the_object(made).stat().st_mode & 0o777 == 0o600
    assert (made / "replay").stat().st_mode & 0o777 == 0o700
    assert lines(run(made)) == []


def flipped(content: bytes) -> bytes:
    """With one bit in the middle of the code changed."""
    half = len(content) // 2
    return content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:100],
        lambda content: content[:-1],
        lambda content: content + b"\0",
        flipped,
        lambda content: content[:2000] + bytes(4096) + content[6096:],
        lambda content: b"\x7fELF" + content[4:],
    ],
    ids=["empty", "cut to 100", "cut by one", "longer", "bit", "hole", "magic"],
)
def test_damaged_is_compiled_again(kept: Path, damage: Callable[[bytes], bytes]) -> None:
    file = the_object(kept)
    content = file.read_bytes()
    file.write_bytes(damage(content))
    assert lines(run(kept)) == ["replay: compiling its loops, once: a few seconds"]
    assert file.read_bytes() == content
    assert lines(run(kept)) == []


def test_another_object_under_its_name_is_not_loaded(kept: Path) -> None:
    """Its own digest fits, but not this key."""
    file = the_object(kept)
    content = file.read_bytes()[len(cache.MAGIC) + cache.DIGEST_BYTES :]
    file.write_bytes(cache.MAGIC + cache._digest("another key", content) + content)
    assert lines(run(kept)) == ["replay: compiling its loops, once: a few seconds"]


@pytest.mark.parametrize("what", ["folder", "link", "fifo"])
def test_no_ordinary_file_under_its_name(kept: Path, what: str) -> None:
    file = the_object(kept)
    elsewhere = kept / "elsewhere"
    file.rename(elsewhere)
    if what == "folder":
        file.mkdir()
    elif what == "link":
        file.symlink_to(elsewhere)
    else:
        os.mkfifo(file)
    first, second = lines(run(kept))
    assert "compiling" in first
    assert "cannot keep what was compiled" in second
    assert REMEDY in second


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_a_file_that_others_can_write_is_not_loaded(kept: Path, mode: int) -> None:
    file = the_object(kept)
    file.chmod(mode)
    assert lines(run(kept)) == ["replay: compiling its loops, once: a few seconds"]
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
@pytest.mark.parametrize("name", ["cache/replay", "cache"])
def test_a_folder_that_others_can_write_is_not_used(kept: Path, name: str, mode: int) -> None:
    folder = kept.parent / name
    folder.chmod(mode)
    if name == "cache" and mode == 0o1777:
        assert lines(run(kept)) == []  # as /tmp
        return
    [line] = lines(run(kept))
    assert line.endswith(
        f"compiling for this start only, a few seconds: others can write to {folder}: {REMEDY}"
    )


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o277])
def test_the_umask_opens_nothing(tmp_path: Path, umask: int) -> None:
    assert lines(run(tmp_path / "a" / "b", umask=umask)) == [
        "replay: compiling its loops, once: a few seconds"
    ]
    for folder in ("a", "a/b", "a/b/replay"):
        assert (tmp_path / folder).stat().st_mode & 0o777 == 0o700
    assert the_object(tmp_path / "a" / "b").stat().st_mode & 0o077 == 0


@as_root
@pytest.mark.parametrize("name", ["cache", "cache/replay"])
def test_a_folder_of_another_user_is_not_used(kept: Path, name: str) -> None:
    os.chown(kept.parent / name, NOBODY, NOBODY)
    [line] = lines(run(kept))
    assert f"{kept.parent / name} belongs to another user: {REMEDY}" in line


@as_root
def test_a_file_of_another_user_is_not_loaded(kept: Path) -> None:
    os.chown(the_object(kept), NOBODY, NOBODY)
    assert lines(run(kept)) == ["replay: compiling its loops, once: a few seconds"]
    assert the_object(kept).stat().st_uid == 0


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "replay").write_text("")
    [line] = lines(run(tmp_path))
    assert f"{tmp_path / 'replay'} is no folder: {REMEDY}" in line


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB without a free byte."""
    folder = tmp_path / "full"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "tmpfs", folder], check=False
    ).returncode:
        pytest.skip("no right to mount")
    try:
        with (folder / "filler").open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                pass
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@as_root
def test_a_full_disk(full: Path) -> None:
    for _ in range(2):
        first, second = lines(run(full))
        assert "compiling" in first
        assert "No space left on device" in second
        assert REMEDY in second
    assert not [path for path in full.rglob("*") if path.name not in ("filler", "replay")]


@as_root
def test_a_read_only_cache_is_loaded(kept: Path) -> None:
    subprocess.run(["mount", "--bind", kept, kept], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", kept], check=True)
        assert lines(run(kept)) == []
        the_folder = kept / "replay"
        assert cache._distrust(the_folder, is_cache=True) == ""
        [line] = lines(run(kept / "other"))
        assert f"cannot write to {kept}: {REMEDY}" in line
    finally:
        subprocess.run(["umount", kept], check=True)


@as_root
@pytest.mark.skipif(not shutil.which("setpriv"), reason="needs setpriv")
def test_nobody_without_a_home(tmp_path: Path) -> None:
    """An unknown user ID without HOME, as in `podman --user 2000:0`."""
    done = subprocess.run(
        [
            *("setpriv", f"--reuid={NOBODY}", "--regid=0", "--clear-groups"),
            # to reach this Python, wherever it is
            *("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search", "env", "-i"),
            *("PATH=/usr/bin:/bin", f"PYTHONPATH={REPOSITORY}", sys.executable, "-m", "tests.jit.program"),
        ],
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    if "Permission denied" in done.stderr or "failed to execute" in done.stderr:
        pytest.skip("another user cannot reach this Python")
    [line] = lines(done)
    assert f"there is no home folder: {REMEDY}" in line


@pytest.mark.parametrize("value", ["", "some/folder", "."])
def test_homes_that_are_not_absolute_are_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.find(make=False).folder == tmp_path / ".cache" / "replay"
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("HOME", value)
    home = pwd.getpwuid(os.geteuid()).pw_dir
    assert cache.find(make=False).folder == Path(home) / ".cache" / "replay"


def test_old_objects_are_removed(made: Path, kept: Path) -> None:
    folder = kept / "replay"
    file = the_object(kept)
    old, recent = folder / f"replay.old-0{cache.SUFFIX}", folder / f"replay.recent-0{cache.SUFFIX}"
    foreign = folder / "notes.txt"
    long_ago = time.time() - (cache.KEPT_DAYS + 1) * cache.DAY
    for path in (old, recent, foreign):
        path.write_bytes(b"object")
    for path in (old, foreign):
        os.utime(path, (long_ago, long_ago))
    file.unlink()
    lines(run(kept))
    assert {path.name for path in folder.iterdir()} == {file.name, recent.name, foreign.name}
    # what is loaded counts as used
    os.utime(file, (long_ago, long_ago))
    assert lines(run(kept)) == []
    assert time.time() - file.stat().st_mtime < 600


def test_variables_of_numba_have_no_say(kept: Path, tmp_path: Path) -> None:
    bad = {"NUMBA_NUM_THREADS": "0", "NUMBA_OPT": "x", "NUMBA_CPU_NAME": "i386"}
    assert lines(run(kept, environment=bad)) == []
    [line] = lines(run(tmp_path / "new", environment=bad))
    assert line.endswith("a few seconds, without NUMBA_CPU_NAME, NUMBA_NUM_THREADS, NUMBA_OPT")
    assert the_object(tmp_path / "new").read_bytes() == the_object(kept).read_bytes()


def test_closed_standard_error(kept: Path) -> None:
    the_object(kept).unlink()
    assert lines(run(kept, "sh", "-c", 'exec "$@" 2>&-', "sh")) == []


def test_memory_that_cannot_be_executed(kept: Path) -> None:
    """systemd's MemoryDenyWriteExecute: one line, no crash."""
    program = (
        "import ctypes, sys; from replay.jit import load\n"
        "refused = ctypes.CDLL(None).prctl(65, 1, 0, 0, 0)\n"  # PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN
        "if refused: sys.exit(77)\n"
        "try: load.addresses([], [])\n"
        "except load.ReplayError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip("the kernel has no PR_SET_MDWE (before v6.3)")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("no memory can be made executable for compiled code: ")
    assert "NUMBA_DISABLE_JIT=1" in done.stdout


def test_modules_are_shared_out_by_how_long_they_are() -> None:
    contents = {"d": "xx", "a": "x" * 9, "b": "x" * 5, "c": "xxx"}
    assert cache._shared_out(contents, 1) == [["a", "b", "c", "d"]]
    assert cache._shared_out(contents, 2) == [["a"], ["b", "c", "d"]]
    assert cache._shared_out(contents, 8) == [["a"], ["b"], ["c"], ["d"]]
