# SPDX-License-Identifier: Apache-2.0
"""The kernel's folio sizes for anonymous memory, changed for a while and always put back."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from corpus.packages import UnavailableError

SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")
LOCK = Path("/tmp/replay-thp.lock")


@contextlib.contextmanager
def unchanged() -> Iterator[None]:
    """While the block runs, nobody who respects the lock changes the settings."""
    with _locked(fcntl.LOCK_SH):
        yield


@contextlib.contextmanager
def folios_of(kilobytes: int) -> Iterator[None]:
    """While the block runs, anonymous memory gets folios of this size wherever one fits."""
    setting = SETTINGS / f"hugepages-{kilobytes}kB" / "enabled"
    if not setting.exists():
        raise UnavailableError(f"{setting} is missing: folios of {kilobytes} kB need Linux 6.8 or newer")
    with _locked(fcntl.LOCK_EX):
        before = setting.read_text().partition("[")[2].partition("]")[0]
        try:
            setting.write_text("always")
            yield
        except PermissionError:
            raise UnavailableError(f"no right to write {setting}: run as root") from None
        finally:
            if setting.read_text().partition("[")[2].partition("]")[0] != before:
                setting.write_text(before)


@contextlib.contextmanager
def _locked(how: int) -> Iterator[None]:
    with LOCK.open("a") as file:
        fcntl.flock(file, how)
        yield
