# SPDX-License-Identifier: Apache-2.0
"""Programs under the corpus's care: started in a group of their own, waited for, ended."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from corpus.packages import UnavailableError

PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def running(*command: str | Path, ending: int = signal.SIGTERM, **options: Any) -> Iterator[subprocess.Popen]:
    """A program of ours while the block runs; then `ending` is sent to it, and SIGKILL to what is left.

    options: as for `subprocess.Popen`; output is dropped unless they say otherwise.
    """
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "text": True} | options
    process = subprocess.Popen([str(word) for word in command], start_new_session=True, **options)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            process.send_signal(ending)
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def done(*command: str | Path, **options: Any) -> str:
    """Run a program to its end; its output. Raises `UnavailableError` if it fails."""
    options = {"capture_output": True, "text": True, "timeout": 900} | options
    result = subprocess.run([str(word) for word in command], **options)
    if result.returncode:
        reason = (result.stderr or result.stdout or "no message").strip().splitlines()[-1]
        raise UnavailableError(f"{Path(command[0]).name} failed: {reason}")
    return result.stdout


def until(condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    """Wait for a condition; its value. Raises `UnavailableError` if it does not come true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)
    raise UnavailableError(f"{what}: not within {seconds:.0f} seconds")


def line(process: subprocess.Popen, expected: str) -> str:
    """The next line of a program's output, which must begin as expected."""
    assert process.stdout is not None, "the program was started with a pipe"
    found = process.stdout.readline().strip()
    if not found.startswith(expected):
        raise UnavailableError(f"{process.args!r} said '{found}' where '{expected}' was expected")
    return found


def resident_pages(pid: int) -> int:
    """Resident pages of a process, 0 when it is gone."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return 0


def child_named(pid: int, comm: str) -> int:
    """A child of a process by its name, 0 if there is none."""
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            if Path(f"/proc/{child}/comm").read_text().strip() == comm:
                return int(child)
    return 0
