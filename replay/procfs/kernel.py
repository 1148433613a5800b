# SPDX-License-Identifier: Apache-2.0
"""What of the machine belongs to a trace: how its kernel counts mappings, what folios it makes."""

from __future__ import annotations

import os
from pathlib import Path

from replay.procfs import files
from replay.support.thp import switches


def mapcounts(root: Path) -> str:
    """What kpagecount says of pages of large folios: `precise` counts or an `average` of the folio.

    Linux kernel commit 749492229e3b "mm: stop maintaining the per-page mapcount of large folios
    (CONFIG_NO_PAGE_MAPCOUNT)" (in v6.15). `precise` too where no configuration can be read.
    """
    return "average" if "\nCONFIG_NO_PAGE_MAPCOUNT=y\n" in files.kernel_config(root) else "precise"


def architecture(root: Path, live: bool) -> str:
    """As `uname -m`. A saved tree says so in sys/kernel/arch (since v6.1); without, it counts as x86_64."""
    if live:
        return os.uname().machine
    try:
        return (root / "sys/kernel/arch").read_text().strip()
    except OSError:
        return "x86_64"


def thp(live: bool) -> dict[str, str]:
    """THP and mTHP settings by the names of their files: what is selected, such as `madvise`.

    Empty for a saved tree, which does not hold them.
    """
    return switches() if live else {}
