"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from replay.errors import ReplayError


class whole_file:  # noqa: N801 - used like a function
    """Context manager: a binary file that appears at `path` whole or not at all.

    mode: its permissions, less the umask; by default only the owner's, for traces show addresses and names.
    """

    def __init__(self, path: str | Path, *, force: bool = False, mode: int = 0o600) -> None:
        # what a symbolic link names is written, not the link
        self.path = Path(path).resolve() if Path(path).is_symlink() else Path(path)
        self.force = force
        self.mode = mode
        if self.path.is_dir():
            raise ReplayError(f"cannot write {path}: it is a folder: name a file in it")
        if self.path.exists() and not self.path.is_file():
            raise ReplayError(f"cannot write {path}: it is no ordinary file: choose another name")
        if self.path.exists() and not force:
            raise ReplayError(f"{path} exists: choose another name with -o, or overwrite it with --force")
        if not self.path.parent.is_dir():
            raise ReplayError(f"cannot write {path}: there is no folder {self.path.parent}: make it first")
        if not os.access(self.path.parent, os.W_OK):
            raise ReplayError(f"cannot write {path}: no right to write to {self.path.parent}")

    def __enter__(self) -> Any:
        self.partial = self.path.with_name(f".{self.path.name}.{os.urandom(4).hex()}.partial")
        try:
            self.file = os.fdopen(os.open(self.partial, os.O_CREAT | os.O_EXCL | os.O_RDWR, self.mode), "w+b")
        except OSError as error:
            raise ReplayError(f"cannot write {self.path}: {error.strerror}") from None
        return self.file

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.file.flush()
                os.fsync(self.file.fileno())
                self.file.close()
                if not self.force and self.path.exists():
                    raise ReplayError(
                        f"{self.path} was made by someone else meanwhile: choose another name with -o"
                    )
                self.partial.rename(self.path)
        except OSError as failure:
            raise ReplayError(f"cannot write {self.path}: {failure.strerror}") from None
        finally:
            with contextlib.suppress(OSError):
                self.file.close()
            self.partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is not None:
            raise ReplayError(f"cannot write {self.path}: {os.strerror(error.errno)}") from None
