# SPDX-License-Identifier: Apache-2.0
"""The kernel's folio sizes for anonymous memory: kept as they are, or changed for a while and put back."""

import contextlib
from collections.abc import Iterator

from corpus.packages import UnavailableError
from replay.support.thp import THP, locked
from replay.validate import workload_settings


@contextlib.contextmanager
def unchanged() -> Iterator[None]:
    """While the block runs, nobody who respects the lock changes the switches."""
    with locked(shared=True):
        yield


@contextlib.contextmanager
def folios_of(kilobytes: int) -> Iterator[None]:
    """While the block runs, anonymous memory gets folios of this size wherever one fits.

    Raises `UnavailableError` if the kernel has no such folios, or we have no right to switch them on.
    """
    switch = f"hugepages-{kilobytes}kB/enabled"
    try:
        with workload_settings.thp({switch: "always"}):
            yield
    except workload_settings.UnavailableError:
        raise UnavailableError(
            f"{THP / switch} is missing: folios of {kilobytes} kB need Linux 6.8 or newer"
        ) from None
    except PermissionError:
        raise UnavailableError(f"no right to write {THP / switch}: run as root") from None
