# SPDX-License-Identifier: Apache-2.0
"""The compiled loops of a capture, made ready together."""

from __future__ import annotations

import types

from replay.capture import cut, extents, folios, rss, runs
from replay.jit import compiled
from replay.procfs import pagemap_scan, pagemap_words


def prepare(*more: types.ModuleType) -> None:
    """Load the loops, and those of `more`; where some are not in the cache, compile them, in seconds.

    Raises `ReplayError` if that fails. Called before a process is held still.
    """
    compiled.prepare(pagemap_scan, pagemap_words, runs, folios, extents, cut, rss, *more)
