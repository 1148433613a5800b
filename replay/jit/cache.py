# SPDX-License-Identifier: Apache-2.0
"""Objects of compiled modules: from the user's cache folder if it has them, else just compiled.

An object is one file, named by its module and a key of all that it follows from. Trouble with the cache never
stops the work: it is said in one line, and what is missing is compiled for this start.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import marshal
import os
import platform
import stat
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from replay.errors import ReplayError
from replay.support.atomic_file import atomic_file

MAGIC: Final = b"replay object 1\n"
SUFFIX: Final = ".object"
DIGEST_BYTES: Final = 32

KEPT_DAYS: Final = 30
"""An object that was not loaded for so long is removed."""
DAY: Final = 86_400

REMEDY: Final = "set XDG_CACHE_HOME to a folder of your own"

ROOT: Final = Path(__file__).resolve().parent.parent.parent
"""What `replay` is imported from."""

PROCESSOR: Final = "generic"
"""An object runs on every processor of the architecture: home folders are shared by machines."""


class Place(NamedTuple):
    """The cache folder.

    folder: None if the user has no home. trouble: why it cannot be written to, empty if it can.
    readable: what is in it may be loaded.
    """

    folder: Path | None
    trouble: str = ""
    readable: bool = False


def objects(contents: Mapping[str, str]) -> dict[str, bytes]:
    """The objects of some modules, by their name. contents: `compiled.content` of each.

    Raises `ReplayError` if they cannot be compiled.
    """
    place = find()
    keys = {module: key(module, content) for module, content in contents.items()}
    found = {}
    if place.folder and place.readable:
        for module in contents:
            content = _read(_path(place.folder, module, keys[module]), keys[module])
            if content is not None:
                found[module] = content
    missing = [module for module in contents if module not in found]
    if missing:
        ignored = ", ".join(sorted(name for name in os.environ if name.startswith("NUMBA_")))
        also = f", without {ignored}" if ignored else ""
        if place.trouble:
            _say(f"compiling for this start only, a few seconds{also}: {place.trouble}: {REMEDY}")
        else:
            _say(f"compiling its loops, once: a few seconds{also}")
        made = _compile({module: contents[module] for module in missing})
        found |= made
        if place.folder and not place.trouble:
            _keep(place.folder, {module: (keys[module], made[module]) for module in made})
    return found


def find(*, make: bool = True) -> Place:
    """The cache folder, with the reason if it cannot be used. make: it is made if there is none."""
    folder = _folder()
    if folder is None:
        return Place(None, "there is no home folder")
    try:
        existing = next(each for each in (folder, *folder.parents) if os.path.lexists(each))
        doubt = _distrust(existing, is_cache=existing == folder)
        if doubt:
            return Place(folder, doubt)
        if not os.access(existing, os.W_OK | os.X_OK):
            return Place(folder, f"cannot write to {existing}", readable=existing == folder)
        if make:
            _make(folder)
    except OSError as error:
        return Place(folder, f"cannot use {folder}: {error.strerror}")
    return Place(folder, readable=True)


def _folder() -> Path | None:
    """The user's cache folder for replay, by the XDG specification; None if the user has no home."""
    import platformdirs

    try:
        folder = platformdirs.user_cache_path("replay", appauthor=False)
    except (KeyError, RuntimeError):
        return None
    return folder if folder.is_absolute() else None


def _make(folder: Path) -> None:
    """Make a folder and its parents, for their owner only, whatever the umask."""
    for each in reversed((folder, *folder.parents)):
        if not each.exists():
            with contextlib.suppress(FileExistsError):
                each.mkdir(0o700)
                each.chmod(0o700)


def _distrust(path: Path, *, is_cache: bool) -> str:
    """Why others could put something into a folder, or below it; empty if only this user and root can.

    is_cache: it is the cache folder itself; root's would be another user's.
    """
    if not path.is_dir():
        return f"{path} is no folder"
    if is_cache and path.stat().st_uid != os.geteuid():
        return f"{path} belongs to another user"
    for each in dict.fromkeys((path, *path.parents, *(path.resolve(), *path.resolve().parents))):
        found = each.stat()
        if found.st_uid not in (0, os.geteuid()):
            return f"{each} belongs to another user"
        # in a sticky folder, such as /tmp, nobody can rename what belongs to another user
        sticky = found.st_mode & stat.S_ISVTX and not (is_cache and each == path)
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not sticky:
            return f"others can write to {each}"
    return ""


def key(module: str, content: str) -> str:
    """What an object follows from, as a digest: functions, how they are compiled, versions, processor."""
    import llvmlite

    versions = [sys.version, _numba_version(), llvmlite.__version__, platform.machine(), PROCESSOR]
    digest = hashlib.blake2b("\n".join((module, content, *versions)).encode(), digest_size=16)
    digest.update(Path(__file__).with_name("build.py").read_bytes())
    return digest.hexdigest()


def _numba_version() -> str:
    """numba's version, without importing it, or the 30 ms of importlib.metadata."""
    found = importlib.util.find_spec("numba")
    if found is None or found.origin is None:
        return "none"
    try:
        return Path(found.origin).with_name("_version.py").read_text()
    except OSError:
        from importlib import metadata

        return metadata.version("numba")


def _path(folder: Path, module: str, key: str) -> Path:
    return folder / f"{module}-{key}{SUFFIX}"


def _digest(key: str, content: bytes) -> bytes:
    return hashlib.blake2b(key.encode() + content, digest_size=DIGEST_BYTES).digest()


def _read(path: Path, key: str) -> bytes | None:
    """The object in a file; None if there is none, if others could have written it, or it is damaged."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
                return None
            if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return None
            content = file.read()
            if time.time() - found.st_mtime > DAY:
                with contextlib.suppress(OSError):
                    os.utime(fd)
    except OSError:
        return None
    start = len(MAGIC) + DIGEST_BYTES
    if content[:start] != MAGIC + _digest(key, content[start:]):
        return None
    return content[start:]


def _keep(folder: Path, made: Mapping[str, tuple[str, bytes]]) -> None:
    """Write objects, with their keys, into the cache, and remove old ones."""
    try:
        for module, (key, content) in made.items():
            path = _path(folder, module, key)
            if path.is_symlink() or path.is_dir():
                raise ReplayError(f"cannot write {path}: it is no ordinary file")
            with atomic_file(path, force=True) as file:
                file.write(MAGIC + _digest(key, content) + content)
    except (OSError, ReplayError) as error:
        _say(f"cannot keep what was compiled: {error}: {REMEDY}")
        return
    for other in folder.iterdir():
        with contextlib.suppress(OSError):
            if other.name.endswith(SUFFIX) and time.time() - other.stat().st_mtime > KEPT_DAYS * DAY:
                other.unlink()


def _compile(contents: Mapping[str, str]) -> dict[str, bytes]:
    """Have child processes compile modules: as many at once as this process may use CPUs.

    numba's variables and a .numba_config.yaml in the current folder have no say in it: an object is the same
    for all starts.
    """
    path = [str(ROOT), *map(os.path.abspath, sys.path)]
    program = f"import sys; sys.path[:] = {path!r}; from replay.jit import build; build.main({os.getpid()})"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    environment |= {"NUMBA_CPU_NAME": PROCESSOR, "NUMBA_CPU_FEATURES": "", "OPENBLAS_NUM_THREADS": "1"}
    # functions are hardly optimised one by one: at the end all are, together
    environment["NUMBA_OPT"] = "1"
    objects: dict[str, bytes] = {}
    with contextlib.ExitStack() as stack:
        children = []
        for modules in _shared_out(contents, len(os.sched_getaffinity(0))):
            try:
                child = subprocess.Popen(
                    [sys.executable, "-c", program, *modules],
                    env=environment,
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )
            except OSError as error:
                raise ReplayError(
                    f"cannot start {sys.executable}, which compiles the loops: {error.strerror}: "
                    "let your user execute it"
                ) from None
            stack.enter_context(child)
            stack.callback(child.kill)
            children.append(child)
        for child in children:
            output, said = child.communicate()
            if child.returncode:
                cause = said.decode(errors="replace").strip() or f"status {child.returncode}"
                raise ReplayError(
                    f"numba cannot compile replay's functions ({cause.splitlines()[-1]}): install replay "
                    "again, or set NUMBA_DISABLE_JIT=1 to do without, slowly"
                )
            objects |= marshal.loads(output)
    return objects


def _shared_out(contents: Mapping[str, str], shares: int) -> list[list[str]]:
    """Modules in so many shares, or fewer, that take about as long to compile: the longest first."""
    made: list[list[str]] = [[] for _ in range(shares)]
    sizes = [0] * shares
    for module in sorted(contents, key=lambda name: len(contents[name]), reverse=True):
        least = sizes.index(min(sizes))
        made[least].append(module)
        sizes[least] += len(contents[module])
    return [modules for modules in made if modules]


def _say(line: str) -> None:
    """A line for people: if it cannot be written, the work goes on."""
    if sys.stderr is not None:  # print() would take standard output instead
        with contextlib.suppress(OSError, ValueError):
            print(f"replay: {line}", file=sys.stderr, flush=True)
