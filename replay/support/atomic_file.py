# SPDX-License-Identifier: Apache-2.0
"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from replay.errors import ReplayError


class atomic_file:  # noqa: N801 - used like a function
    """Context manager: a binary file that appears at `path` whole or not at all.

    It has no name until it is whole, so that nothing is left of it even if this process is killed; where the
    file system does not have that (O_TMPFILE), it has one that begins with a dot.

    mode: its permissions, less the umask; by default only the owner's, for traces show addresses and names.

    Made, it raises `ReplayError` for whatever can be known before the work is done: the name, the folder, the
    rights, and whether there is room for `PROBE_BYTES`.
    """

    def __init__(self, path: str | Path, *, force: bool = False, mode: int = 0o600) -> None:
        self.path = Path(path)
        self.force = force
        self.mode = mode
        try:
            self._check()
        except OSError as error:
            raise ReplayError(f"cannot write {path}: {error.strerror}") from None

    def _check(self) -> None:
        path = self.path
        _check_length(path)
        if path.is_symlink():
            # what a symbolic link names is written, not the link
            self.path = path.resolve()
        if self.path.is_dir():
            raise ReplayError(f"cannot write {path}: it is a folder: name a file in it")
        if self.path.exists() and not self.path.is_file():
            raise ReplayError(f"cannot write {path}: it is no ordinary file: choose another name")
        if self.path.exists() and not self.force:
            raise ReplayError(f"{path} exists: choose another name, or overwrite it with --force")
        if not self.path.parent.is_dir():
            raise ReplayError(f"cannot write {path}: there is no folder {self.path.parent}: make it first")
        try:
            fd, partial = self._opened()
        except PermissionError:
            raise ReplayError(f"cannot write {path}: no right to write to {self.path.parent}") from None
        try:
            left = PROBE_BYTES
            while left:
                left -= os.write(fd, bytes(left))
        finally:
            os.close(fd)
            partial.unlink(missing_ok=True)

    def _opened(self) -> tuple[int, Path]:
        """A new file in the folder, and the name that it has or is to have until it is whole."""
        # short: the name of the file may be as long as the file system allows
        partial = self.path.with_name(f".replay-{os.urandom(4).hex()}.partial")
        fd = _nameless(self.path.parent, self.mode)
        if fd is None:
            fd = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_RDWR, self.mode)
        return fd, partial

    def __enter__(self) -> Any:
        try:
            fd, self.partial = self._opened()
        except OSError as error:
            raise ReplayError(f"cannot write {self.path}: {error.strerror}") from None
        self.file = os.fdopen(fd, "w+b")
        return self.file

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.file.flush()
                os.fsync(self.file.fileno())
                if not self.force and self.path.exists():
                    raise ReplayError(f"{self.path} was made by someone else meanwhile: choose another name")
                if not self.partial.exists():
                    _give_name(self.file.fileno(), self.partial)
                self.partial.rename(self.path)
        except OSError as failure:
            raise ReplayError(f"cannot write {self.path}: {failure.strerror}") from None
        finally:
            with contextlib.suppress(OSError):
                self.file.close()
            self.partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise ReplayError(f"cannot write {self.path}: {os.strerror(error.errno)}") from None


PROBE_BYTES: Final = 1 << 16
"""What must be free on the file system before the work begins: less than the smallest trace takes."""


def _check_length(path: Path) -> None:
    """Refuse a name that the file system does not take."""
    length = len(os.fsencode(path.name))
    try:
        most = os.pathconf(path.parent, "PC_NAME_MAX")
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            return  # the folder is not there, or hidden: told later
        raise
    if length > most:
        raise ReplayError(
            f"cannot write {path.name[:20]}...: the name has {length} bytes, the file system takes {most}: "
            "choose a shorter one"
        )


DESCRIPTORS: Final = Path("/proc/self/fd")
"""Links to open files, by which one without a name gets one."""


def _nameless(folder: Path, mode: int) -> int | None:
    """A new file in a folder, without a name, open for writing; None where there is no such thing."""
    if not hasattr(os, "O_TMPFILE") or not DESCRIPTORS.is_dir():
        return None
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR, mode)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            return None
        raise


def _give_name(fd: int, path: Path) -> None:
    """Give an open file that has no name one."""
    links = os.open(DESCRIPTORS, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # given a folder, os.link() follows the link, by linkat(2)
        os.link(str(fd), path, src_dir_fd=links, follow_symlinks=True)
    finally:
        os.close(links)
