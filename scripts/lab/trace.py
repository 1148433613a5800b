"""The kernel's raw ring buffer, as trace_pipe_raw gives it, decoded into events."""

import re
import struct
from collections.abc import Iterator
from typing import NamedTuple

PAGE = 4096
_PAGE_HEADER = struct.Struct("<QQ")  # time stamp, committed bytes (flags in the bits above 20)
_RECORD = struct.Struct("<I")
_COMMIT_BYTES = (1 << 20) - 1
_MISSED = 1 << 31
_PADDING, _TIME_EXTEND, _TIME_STAMP = 29, 30, 31
_FIELD = re.compile(r"\tfield:(.+?)\s*(\w+)(?:\[\d+\])?;\toffset:(\d+);\tsize:(\d+);\tsigned:([01]);")
_UNSIGNED = {1: "B", 2: "H", 4: "I", 8: "Q"}
_IN_INTERRUPT = 0x08 | 0x10  # TRACE_FLAG_HARDIRQ, TRACE_FLAG_SOFTIRQ


class LostEventsError(Exception):
    """The ring buffer dropped events: the counts would be wrong."""


class Event(NamedTuple):
    """One event of the ring buffer."""

    name: str
    pid: int
    in_interrupt: bool
    args: dict[str, int]


class Format(NamedTuple):
    """Where an event type keeps its fields: one struct over the whole record, names in its order."""

    name: str
    layout: struct.Struct
    fields: tuple[str, ...]


def parse_format(text: str) -> tuple[int, Format]:
    """(type number, format) from the text of an event's `format` file."""
    name = re.search(r"^name: (\S+)", text, re.M)[1]
    number = int(re.search(r"^ID: (\d+)", text, re.M)[1])
    codes, names, end = "<", [], 0
    for _, field, offset, size, signed in _FIELD.findall(text):
        offset, size = int(offset), int(size)
        code = _UNSIGNED.get(size, f"{size}s")
        codes += f"{offset - end}x" + (code.lower() if signed == "1" else code)
        names.append(field)
        end = offset + size
    return number, Format(name, struct.Struct(codes), tuple(names))


def records(raw: bytes) -> Iterator[tuple[int, int]]:
    """(offset, length) of every event's data in the raw pages. Raises LostEventsError."""
    for base in range(0, len(raw), PAGE):
        _, commit = _PAGE_HEADER.unpack_from(raw, base)
        if commit & _MISSED:
            raise LostEventsError("the ring buffer marks missed events")
        at = base + _PAGE_HEADER.size
        end = at + (commit & _COMMIT_BYTES)
        while at < end:
            (word,) = _RECORD.unpack_from(raw, at)
            kind, delta = word & 31, word >> 5
            if kind in (_TIME_EXTEND, _TIME_STAMP):
                at += 8
            elif kind == _PADDING:
                if not delta:
                    break
                at += 4 + _RECORD.unpack_from(raw, at + 4)[0]
            elif kind:
                yield at + 4, kind * 4
                at += 4 + kind * 4
            else:
                (length,) = _RECORD.unpack_from(raw, at + 4)
                yield at + 8, length - 4
                at += 4 + length


def events(raw: bytes, formats: dict[int, Format]) -> Iterator[Event]:
    """Every event of the raw pages whose type has a format, in order."""
    for at, _ in records(raw):
        found = formats.get(raw[at] | raw[at + 1] << 8)
        if found:
            args = dict(zip(found.fields, found.layout.unpack_from(raw, at), strict=True))
            yield Event(found.name, args["common_pid"], bool(args["common_flags"] & _IN_INTERRUPT), args)


def check_stats(text: str) -> None:
    """Raise LostEventsError unless the ring buffer's loss counters are 0."""
    for line in text.splitlines():
        name, _, value = line.partition(": ")
        if name in ("overrun", "commit overrun", "dropped events") and int(value):
            raise LostEventsError(f"{name}: {value}")
