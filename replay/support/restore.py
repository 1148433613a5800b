# SPDX-License-Identifier: Apache-2.0
"""Kernel settings put back, however the run ends: also by SIGKILL.

A small process of its own keeps the list of what must be undone. It does so, last entry first, when the pipe
from its parent closes: at the end of the run, or because the parent died. Signals from the terminal do not
reach it. This file runs alone, as a script, and so needs the standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

PATIENCE_SECONDS: Final = 30.0
"""How long a busy thing may take to become free: a process that held it open is still ending."""

END: Final = "\n"
"""What the keeper reads when the block has ended."""


class Undo:
    """The list of what must be undone. Register before changing anything: the change may be the last act."""

    def __init__(self, keeper: subprocess.Popen[str]) -> None:
        self._keeper = keeper

    def write(self, path: Path, text: str) -> None:
        """Write `text` to a file that exists."""
        self._add("write", str(path), text)

    def remove_directory(self, path: Path) -> None:
        """Remove a directory if it is there: a tracing instance."""
        self._add("rmdir", str(path))

    def remove_file(self, path: Path) -> None:
        """Remove a file if it is there."""
        self._add("unlink", str(path))

    def remove_probes(self, file: Path, group: str) -> None:
        """Remove the kprobe events of a group, which are the lines of a file, if there are any."""
        self._add("probes", str(file), group)

    def swapoff(self, path: Path) -> None:
        """Stop swapping to a device if it is done."""
        self._add("swapoff", str(path))

    def _add(self, *entry: str) -> None:
        assert self._keeper.stdin is not None
        self._keeper.stdin.write(json.dumps(entry) + "\n")
        self._keeper.stdin.flush()


@contextlib.contextmanager
def undone(inherited: Sequence[int] = ()) -> Iterator[Undo]:
    """An `Undo` whose entries are undone when the block ends, or when this process does.

    inherited: file descriptors that the undoing needs, under the same numbers. Raises `RuntimeError` with the
    failures if something could not be undone.
    """
    keeper = subprocess.Popen(
        [sys.executable, "-I", __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=tuple(inherited),
        start_new_session=True,
        cwd="/",
    )
    try:
        yield Undo(keeper)
    finally:
        assert keeper.stdin is not None and keeper.stdout is not None
        # said, not only closed: a forked child may hold the pipe open
        with contextlib.suppress(OSError):
            keeper.stdin.write(END)
            keeper.stdin.close()
        failures = keeper.stdout.read().strip()
        keeper.stdout.close()
        keeper.wait()
        if failures:
            raise RuntimeError(failures)


def append(file: Path, line: str) -> None:
    """Append a line to a file of tracefs: not as open() does it, for these files have no end to seek."""
    fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        os.write(fd, f"{line}\n".encode())
    finally:
        os.close(fd)


def remove_probes(file: Path, group: str) -> None:
    """Remove the kprobe events of a group. Raises `OSError` (EBUSY) while an instance still records them."""
    for line in file.read_text().splitlines():
        event = line.partition(":")[2].split(" ")[0]
        if event.startswith(f"{group}/"):
            append(file, f"-:{event}")


def _undo(entry: Sequence[str]) -> None:
    kind, path = entry[0], entry[1]
    if kind == "write":
        Path(path).write_text(entry[2])
    elif kind == "rmdir":
        Path(path).rmdir()
    elif kind == "unlink":
        Path(path).unlink()
    elif kind == "probes":
        remove_probes(Path(path), entry[2])
    elif kind == "swapoff":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.swapoff(os.fsencode(path)) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)


def _undo_patiently(entry: Sequence[str]) -> str:
    """Undo one entry -> what failed, nothing if it is undone (or was never done)."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            _undo(entry)
        except OSError as error:
            if isinstance(error, FileNotFoundError) or (
                entry[0] == "swapoff" and error.errno == errno.EINVAL
            ):
                return ""
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                return f"{entry[0]} {entry[1]}: {error.strerror}"
            time.sleep(0.02)
        else:
            return ""


def _keep() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    # a last line without its end was never registered
    lines = iter(sys.stdin.readline, END)
    entries = [json.loads(line) for line in itertools.takewhile(lambda line: line.endswith("\n"), lines)]
    failures = [failure for entry in reversed(entries) if (failure := _undo_patiently(entry))]
    with contextlib.suppress(OSError):
        sys.stdout.write("; ".join(failures))
        sys.stdout.flush()


if __name__ == "__main__":
    _keep()
