# SPDX-License-Identifier: Apache-2.0
"""The page tables of one process, kept as runs: in memory, and beyond a budget in a temporary file.

They are read once and kept, because what a trace says of a page (how often the address space maps it) may
depend on any other page, and must fit rows that were written long before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Final

import numpy as np

from replay.capture.runs import Runs

BUDGET_RUNS: Final = 4 << 20
"""Runs held in memory, 24 bytes each; 16 GiB of scattered pages."""

_RECORD: Final = np.dtype([("vpn", "<i8"), ("word", "<u8"), ("pages", "<i4"), ("vma", "<i4")])


@dataclass(frozen=True)
class _Spilled:
    """A block in the temporary file: its place, number of runs and first page."""

    offset: int
    runs: int
    first: int


@dataclass
class Kept:
    """Blocks of runs, each within one aligned block of pages, in address order once sorted.

    pages: all pages. present: whether any page is present; frames: whether any frame reads as other than 0.
    """

    pages: int = 0
    present: bool = False
    frames: bool = False
    _blocks: list[Runs | _Spilled] = field(default_factory=list)
    _in_memory: int = 0
    _file: IO[bytes] | None = None

    def append(self, block: Runs) -> None:
        """Keep one more block."""
        if not len(block.vpn):
            return
        self.pages += int(block.pages.sum())
        present = block.present
        self.present |= bool(present.any())
        self.frames = self.frames or bool((block.frame[present] > 0).any())
        if self._in_memory + len(block.vpn) <= BUDGET_RUNS:
            self._in_memory += len(block.vpn)
            self._blocks.append(block)
        else:
            self._blocks.append(self._spill(block))

    def sort(self) -> None:
        """Put the blocks in address order."""
        self._blocks.sort(key=lambda block: block.first if isinstance(block, _Spilled) else block.vpn[0])

    def blocks(self) -> Iterator[Runs]:
        """All blocks."""
        for block in self._blocks:
            yield self._load(block) if isinstance(block, _Spilled) else block

    def close(self) -> None:
        """Give everything back."""
        self._blocks.clear()
        if self._file:
            self._file.close()

    def _spill(self, block: Runs) -> _Spilled:
        if self._file is None:
            import tempfile

            self._file = tempfile.TemporaryFile(prefix="replay-")  # noqa: SIM115 - closed by close()
        records = np.empty(len(block.vpn), _RECORD)
        for name, column in zip(_RECORD.names or (), block, strict=True):
            records[name] = column
        offset = self._file.seek(0, 2)
        self._file.write(records.data)
        return _Spilled(offset, len(records), int(block.vpn[0]))

    def _load(self, block: _Spilled) -> Runs:
        assert self._file
        self._file.seek(block.offset)
        records = np.frombuffer(self._file.read(block.runs * _RECORD.itemsize), _RECORD)
        return Runs(*(np.ascontiguousarray(records[name]) for name in _RECORD.names or ()))
