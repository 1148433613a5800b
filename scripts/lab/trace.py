# SPDX-License-Identifier: Apache-2.0
"""The kernel's raw ring buffer, as trace_pipe_raw gives it, decoded into events."""

import struct
from collections.abc import Iterator, Mapping

from replay.validate.tracefs import Event, Format, Header, decode

_MISSED = 1 << 31


def header(page_size: int) -> Header:
    """A sub-buffer is a page: time stamp, then committed bytes with flags in the bits above 20, then data."""
    return Header(timestamp=0, commit=8, commit_type="=Q", data=16, size=page_size)


class LostEventsError(Exception):
    """The ring buffer dropped events: the counts would be wrong."""


def events(raw: bytes, formats: Mapping[int, Format], page_size: int) -> Iterator[Event]:
    """Every event of the raw pages whose type has a format, in order. Raises LostEventsError."""
    where = header(page_size)
    for base in range(0, len(raw), page_size):
        page = raw[base : base + page_size]
        (commit,) = struct.unpack_from(where.commit_type, page, where.commit)
        if commit & _MISSED:
            raise LostEventsError("the ring buffer marks missed events")
        # the guest has one CPU
        yield from decode(page, 0, where, formats)


def check_stats(text: str) -> None:
    """Raise LostEventsError unless the ring buffer's loss counters are 0."""
    for line in text.splitlines():
        name, _, value = line.partition(": ")
        if name in ("overrun", "commit overrun", "dropped events") and int(value):
            raise LostEventsError(f"{name}: {value}")
