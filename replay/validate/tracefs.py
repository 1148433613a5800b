# SPDX-License-Identifier: Apache-2.0
"""Tracing by the kernel: tracefs, an instance of our own, and events that are read raw and decoded.

Formats: Documentation/trace/ftrace.rst, Documentation/trace/ring-buffer-map.rst and the files `format`,
`header_page` and `header_event` below `events`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from replay.errors import ReplayError
from replay.support.restore import Undo

FSOPEN, FSCONFIG, FSMOUNT = 430, 431, 432
"""System calls of include/uapi/asm-generic/unistd.h; the same on every architecture but alpha."""
FSOPEN_CLOEXEC: Final = 1
FSCONFIG_CMD_CREATE: Final = 6
FSMOUNT_CLOEXEC: Final = 1

MOUNTED: Final = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))
"""Where tracefs usually is, for kernels without fsmount() (before v5.2)."""

INSTANCE: Final = re.compile(r"replay-(\d+)-\w+")

TYPE_LEN_BITS: Final = 5
PADDING, TIME_EXTEND, TIME_STAMP = 29, 30, 31
"""Kinds of ring-buffer records that are no events: include/linux/ring_buffer.h, enum ring_buffer_type."""
COMMIT_MASK: Final = (1 << 30) - 1
"""Bytes of a sub-buffer; the bits above say that events before it were lost (RB_MISSED_EVENTS)."""

IN_INTERRUPT: Final = 0x08 | 0x10 | 0x40
"""common_flags: hard interrupt, soft interrupt, NMI (include/linux/trace_events.h)."""


class Event(NamedTuple):
    """One event.

    time_ns: of the trace clock; interrupt: an interrupt made it, not the task that it interrupted.
    """

    time_ns: int
    cpu: int
    name: str
    pid: int
    interrupt: bool
    fields: dict[str, int | bytes]


class Format(NamedTuple):
    """How an event lies in the ring buffer."""

    name: str
    layout: struct.Struct
    fields: tuple[str, ...]


def number(event: Event, field: str) -> int:
    """A field of an event."""
    value = event.fields[field]
    assert isinstance(value, int)
    return value


class Header(NamedTuple):
    """Where things lie in a sub-buffer, in bytes. commit_type: of its committed length."""

    timestamp: int
    commit: int
    commit_type: str
    data: int
    size: int


@contextlib.contextmanager
def mounted() -> Iterator[tuple[Path, int]]:
    """tracefs as (path, file descriptor that the path needs), in a mount that no other process sees.

    The mount belongs to the descriptor and is attached nowhere. It is gone when the last process closes it.
    Raises `ReplayError` where there is no tracefs, or no right to mount it.
    """
    try:
        fd = _mount_detached()
    except OSError as error:
        fd = _open_mounted(error)
    try:
        yield Path(f"/proc/self/fd/{fd}"), fd
    finally:
        os.close(fd)


def _mount_detached() -> int:
    context = _syscall(FSOPEN, b"tracefs", FSOPEN_CLOEXEC)
    try:
        _syscall(FSCONFIG, context, FSCONFIG_CMD_CREATE, None, None, 0)
        return _syscall(FSMOUNT, context, FSMOUNT_CLOEXEC, 0)
    finally:
        os.close(context)


def _open_mounted(error: OSError) -> int:
    for path in MOUNTED:
        if (path / "instances").is_dir():
            return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if error.errno == errno.ENODEV:
        raise ReplayError(
            "this kernel has no tracefs (CONFIG_TRACING): validate needs a kernel with tracepoints"
        )
    if error.errno in (errno.EPERM, errno.EACCES):
        raise ReplayError("no right to mount tracefs: run replay validate as root with CAP_SYS_ADMIN")
    raise ReplayError(f"cannot mount tracefs ({error.strerror}): mount it at {MOUNTED[0]}")


def _syscall(*arguments: int | bytes | None) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    result: int = libc.syscall(
        *(ctypes.c_long(word) if isinstance(word, int) else ctypes.c_char_p(word) for word in arguments)
    )
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def remove_stale(tracefs: Path) -> None:
    """Remove tracing instances of replay processes that have ended without cleaning up."""
    for instance in (tracefs / "instances").iterdir():
        owner = INSTANCE.fullmatch(instance.name)
        if owner and not Path(f"/proc/{owner[1]}").exists():
            with contextlib.suppress(OSError):
                instance.rmdir()


class Instance:
    """A tracing instance of our own: its ring buffers and its switches. `instance` makes one."""

    def __init__(self, path: Path, formats: dict[int, Format]) -> None:
        self.path = path
        self.events = frozenset(form.name for form in formats.values())
        self._formats = formats
        self._cpus = sorted((path / "per_cpu").iterdir(), key=lambda cpu: int(cpu.name[3:]))
        self._page = _header_page(path.parents[1])
        self._size_kb = 0

    def only(self, pid: int) -> None:
        """Record only what thread `pid` does."""
        _write(self.path / "set_event_pid", str(pid))

    def record(self) -> None:
        """Record, until `rest` is called."""
        _write(self.path / "tracing_on", "1")

    def rest(self) -> None:
        """Stop recording."""
        _write(self.path / "tracing_on", "0")

    def reserve(self, size: int) -> None:
        """Give each CPU a buffer of at least `size` bytes. A buffer never shrinks."""
        need = -(-size // 1024)
        if need <= self._size_kb:
            return
        try:
            _write(self.path / "buffer_size_kb", str(need))
        except OSError as error:
            raise ReplayError(
                f"no memory for trace buffers of {need} kB for each CPU ({error.strerror}): "
                "validate a smaller process"
            ) from None
        self._size_kb = need

    def read(self, *, all_of_them: bool = True) -> list[Event]:
        """The events so far, in order of time. They are taken out of the buffers.

        all_of_them: raise `ReplayError` if the kernel dropped an event.
        """
        events: list[Event] = []
        for cpu in self._cpus:
            number = int(cpu.name[3:])
            for page in _raw_pages(cpu / "trace_pipe_raw", self._page.size):
                events += decode(page, number, self._page, self._formats)
        if all_of_them:
            self._check_losses()
        events.sort(key=lambda event: event.time_ns)
        return events

    def _check_losses(self) -> None:
        for cpu in self._cpus:
            stats = dict(
                line.split(": ", 1) for line in (cpu / "stats").read_text().splitlines() if ": " in line
            )
            lost = {name: int(stats[name]) for name in ("overrun", "commit overrun", "dropped events")}
            if any(lost.values()):
                raise ReplayError(
                    f"the kernel lost trace events on {cpu.name} ({lost}): run validate again "
                    "while fewer other programs run"
                )


def decode(page: bytes, cpu: int, header: Header, formats: Mapping[int, Format]) -> Iterator[Event]:
    """Events of one sub-buffer: a time stamp, then records with the time since the one before."""
    (time,) = struct.unpack_from("=Q", page, header.timestamp)
    (commit,) = struct.unpack_from(header.commit_type, page, header.commit)
    position = header.data
    end = position + (commit & COMMIT_MASK)
    while position < end:
        (word,) = struct.unpack_from("=I", page, position)
        kind, delta = word & (1 << TYPE_LEN_BITS) - 1, word >> TYPE_LEN_BITS
        position += 4
        if kind >= PADDING:
            (more,) = struct.unpack_from("=I", page, position)
            if kind == PADDING:
                if delta == 0:
                    return
                time += delta
                position += more
            elif kind == TIME_EXTEND:
                time += (more << 27) + delta
                position += 4
            else:
                # an absolute time has 59 bits: the top ones are those of the time before
                time = (more << 27) + delta | time & ~((1 << 59) - 1)
                position += 4
            continue
        time += delta
        size = 4 * kind
        if kind == 0:
            (size,) = struct.unpack_from("=I", page, position)
            position += 4
            size -= 4
        event = _event(page, position, time, cpu, formats)
        if event:
            yield event
        position += size


def _event(page: bytes, position: int, time: int, cpu: int, formats: Mapping[int, Format]) -> Event | None:
    (kind,) = struct.unpack_from("=H", page, position)
    form = formats.get(kind)
    if form is None:
        return None
    fields = dict(zip(form.fields, form.layout.unpack_from(page, position), strict=True))
    interrupt = bool(int(fields["common_flags"]) & IN_INTERRUPT)
    return Event(time, cpu, form.name, int(fields["common_pid"]), interrupt, fields)


@contextlib.contextmanager
def instance(
    tracefs: Path, undo: Undo, name: str, events: Sequence[str], *, overwrite: bool = False
) -> Iterator[Instance]:
    """An instance that records `events` ("system/name"), as far as this kernel has them. It is stopped at
    first.

    overwrite: when a buffer is full, drop its oldest events instead of new ones. `undo` learns of its removal
    before it is made.
    """
    path = tracefs / "instances" / f"replay-{os.getpid()}-{name}"
    undo.remove_directory(path)
    try:
        path.mkdir()
    except OSError as error:
        raise ReplayError(
            f"cannot make a tracing instance ({error.strerror}): "
            "lockdown or a container may forbid it: run replay validate as root of the host"
        ) from None
    present = [event for event in events if (path / "events" / event / "format").exists()]
    formats = dict(parse_format((path / "events" / event / "format").read_text()) for event in present)
    made = Instance(path, formats)
    made.rest()
    _write(path / "options" / "overwrite", str(int(overwrite)))
    # one clock for all CPUs: a thread may be moved while it exits
    _write(path / "trace_clock", "mono")
    for event in present:
        _write(path / "events" / event / "enable", "1")
    try:
        yield made
    finally:
        with contextlib.suppress(OSError):
            made.rest()


def _header_page(tracefs: Path) -> Header:
    """Where things lie in a sub-buffer, by `events/header_page`."""
    fields = {
        name: (int(offset), int(size))
        for name, offset, size in re.findall(
            r"field: [\w ]*?(\w+);\s*offset:(\d+);\s*size:(\d+);",
            (tracefs / "events/header_page").read_text(),
        )
    }
    data, length = fields["data"]
    commit, commit_size = fields["commit"]
    return Header(fields["timestamp"][0], commit, {4: "=I", 8: "=Q"}[commit_size], data, data + length)


_FIELD: Final = re.compile(
    r"field:(?P<type>.*?)\s*(?P<name>\w+)(?:\[(?P<count>\d+)\])?;\s*offset:(?P<offset>\d+);\s*"
    r"size:(?P<size>\d+);\s*signed:(?P<signed>[01]);"
)


def parse_format(text: str) -> tuple[int, Format]:
    """A `format` file -> the event's number and its format. Arrays are bytes."""
    number = re.search(r"^ID: (\d+)$", text, re.MULTILINE)
    name = re.search(r"^name: (\w+)$", text, re.MULTILINE)
    assert number and name
    layout, position = "=", 0
    names = []
    for field in _FIELD.finditer(text):
        offset, size = int(field["offset"]), int(field["size"])
        layout += "x" * (offset - position)
        code = {1: "b", 2: "h", 4: "i", 8: "q"}.get(size)
        if code is None or field["count"]:
            layout += f"{size}s"
        else:
            layout += code if field["signed"] == "1" else code.upper()
        names.append(field["name"])
        position = offset + size
    return int(number[1]), Format(name[1], struct.Struct(layout), tuple(names))


def _raw_pages(path: Path, size: int) -> Iterator[bytes]:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        while True:
            try:
                page = os.read(fd, size)
            except BlockingIOError:
                return
            if not page:
                return
            yield page
    finally:
        os.close(fd)


def _write(path: Path, text: str) -> None:
    path.write_text(text)
