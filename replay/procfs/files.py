# SPDX-License-Identifier: Apache-2.0
"""procfs as arrays: maps, smaps, status, pagemap, kpageflags, kpagecount. Nothing else reads /proc.

Every function takes the root of the tree: `/proc`, another machine's or container's proc, or a saved copy.
Units: addresses are page numbers (`vpn`), sizes are pages, unless a name says otherwise.

Formats: Documentation/filesystems/proc.rst, Documentation/admin-guide/mm/pagemap.rst.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gzip
import os
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

import numpy as np
import numpy.typing as npt

from replay.errors import ProcessGoneError, ReplayError
from replay.trace.schema import utf8

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

PROC: Final = Path("/proc")

PM_PRESENT: Final = 1 << 63
PM_SWAP: Final = 1 << 62
PM_FILE: Final = 1 << 61
PM_GUARD_REGION: Final = 1 << 58
"""A guard region, from v6.15 on (Linux kernel commit a516403787e0)."""
PM_UFFD_WP: Final = 1 << 57
PM_EXCLUSIVE: Final = 1 << 56
PM_SOFT_DIRTY: Final = 1 << 55
PM_PFRAME: Final = (1 << 55) - 1
PM_MOVING: Final = PM_EXCLUSIVE | PM_SOFT_DIRTY
SWAP_TYPE_BITS: Final = 5
"""Bits of a pagemap word (fs/proc/task_mmu.c); the frame field of a swap entry is type, then offset.

PM_MOVING changes without the process: other processes and their exits make PM_EXCLUSIVE.
"""

SWAP_TYPES: Final = 23
"""Swap types from here on are never swap areas.

Of 32 types (include/linux/swap.h, MAX_SWAPFILES) at most 9 are set aside for migration, hwpoison, device and
marker entries, and they are the last. The number of areas is no bound: those switched off leave gaps.
"""

BLOCK_BYTES: Final = 1 << 20
"""Bytes of one read: smaller ones pay the system call, larger ones leave the processor's cache."""

TEXT_BYTES: Final = 1 << 16
"""Bytes of one read of a text file; procfs gives about a page of it at a time."""

_PROC_SUPER_MAGIC: Final = 0x9FA0


class Vma(NamedTuple):
    """One VMA of smaps. `page_size`: KernelPageSize in bytes; `rss` to `hugetlb`: pages of the base size."""

    start: int
    pages: int
    perms: str
    flags: str
    name: str
    inode: int
    page_size: int
    rss: int
    anonymous: int
    swap: int
    pmd_mapped: int
    hugetlb: int

    @property
    def end(self) -> int:
        return self.start + self.pages

    def has(self, flag: str) -> bool:
        """Whether VmFlags names `flag`, two letters as in show_smap_vma_flags()."""
        return flag in self.flags.split()


class Status(NamedTuple):
    """Fields of /proc/PID/status; `page_tables` (VmPTE) to `hugetlb` are pages."""

    name: str
    state: str
    tgid: int
    tracer: int
    page_tables: int
    rss_anon: int
    rss_file: int
    rss_shmem: int
    swap: int
    hugetlb: int


def is_live(root: Path) -> bool:
    """Whether `root` is a mounted procfs, as opposed to a saved copy of one."""
    buffer = ctypes.create_string_buffer(256)  # struct statfs: f_type is its first word
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.statfs(os.fsencode(root), buffer) != 0:
        raise ReplayError(f"cannot read {root}: {os.strerror(ctypes.get_errno())}: name a procfs tree")
    return ctypes.c_long.from_buffer(buffer).value == _PROC_SUPER_MAGIC


def pids(root: Path) -> list[int]:
    """All processes of the tree, in order."""
    return sorted(int(entry.name) for entry in root.iterdir() if entry.name.isdigit())


def task_with_memory(root: Path, pid: int) -> int | None:
    """The task through which the memory of a process is seen: its first, or another if that has ended.

    None for kernel threads and zombies, which have no memory; the first of a process that is gone.
    """
    if _has_memory(root / str(pid)):
        return pid
    return next((tid for tid in threads(root, pid) if _has_memory(root / str(pid) / "task" / str(tid))), None)


def _has_memory(folder: Path) -> bool:
    try:
        return "VmPTE:" in (folder / "status").read_text(errors="replace")
    except OSError:
        return True


def threads(root: Path, pid: int) -> list[int]:
    """Thread ids of a process; empty if it is gone."""
    try:
        return sorted(int(name) for name in os.listdir(f"{root}/{pid}/task"))  # noqa: PTH208 - fast
    except (FileNotFoundError, ProcessLookupError):
        return []


def in_first_pid_namespace() -> bool:
    """Whether processes have the numbers that the kernel's own tracing gives them."""
    try:
        return read_file(PROC / "2" / "comm") == "kthreadd\n"
    except OSError:
        return False


def own_pid(root: Path) -> int | None:
    """The caller's PID as this procfs numbers it; None in a saved tree or a foreign PID namespace."""
    try:
        return int((root / "self").readlink().name)
    except (OSError, ValueError):
        return None


def read_file(path: str | Path) -> str:
    """A text file whole; in a third of the time that `Path.read_text` takes for one of a page or two."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = [os.read(fd, TEXT_BYTES)]
        while parts[-1]:
            parts.append(os.read(fd, TEXT_BYTES))
    finally:
        os.close(fd)
    return b"".join(parts).decode(errors="surrogateescape")


def field(status: str, name: str) -> str:
    """A field of a status file; empty if it is not there."""
    _, found, rest = status.partition(f"\n{name}:")
    return rest.partition("\n")[0].strip() if found else ""


def tracer(root: Path, pid: int) -> int:
    """The process that traces a task; 0: none."""
    return int(field("\n" + read_text(root, pid, "status"), "TracerPid") or 0)


def read_text(root: Path, pid: int, name: str) -> str:
    """A text file of /proc/PID, whole; `ReplayError` if it cannot be read or was cut."""
    path = f"{root}/{pid}/{name}"
    try:
        text = read_file(path)
    except OSError as error:
        _refuse(error, root, pid, Path(path))
    # procfs ends every line; a file that does not was copied in part
    if text and not text.endswith("\n"):
        raise ReplayError(f"{path} is cut: save the tree again")
    return text


CMDLINE_BYTES: Final = 1024
"""How much of a command line is kept: a trace may hold a hundred thousand of them."""


def command_line(root: Path, pid: int) -> str:
    """The arguments of a process with spaces between them, cut at `CMDLINE_BYTES`; empty if nobody says."""
    try:
        fd = os.open(f"{root}/{pid}/cmdline", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        found = os.read(fd, CMDLINE_BYTES)
    except OSError:
        return ""
    finally:
        os.close(fd)
    return utf8(found.rstrip(b"\0").replace(b"\0", b" ").decode(errors="surrogateescape"))


PF_EXITING: Final = 1 << 2
"""include/linux/sched.h."""


def flags(folder: Path) -> int:
    """The PF_ flags of a task, field 9 of its stat; 0 if it is gone."""
    try:
        return int(read_file(folder / "stat").rpartition(")")[2].split()[6])
    except (OSError, IndexError, ValueError):
        return 0


def _is_exiting(root: Path, pid: int) -> bool:
    return bool(flags(root / str(pid)) & PF_EXITING)


def read_status(root: Path, pid: int, page_size: int) -> Status:
    """The fields that replay needs.

    Raises `ProcessGoneError` for no such process and for one without memory because it ended, `ReplayError`
    for a kernel thread, a thread that is not the group's leader, and a file that lacks fields.
    """
    path = f"{root}/{pid}/status"
    # Name comes first
    text = "\n" + read_text(root, pid, "status")
    name, state = utf8(field(text, "Name")), field(text, "State")[:1]
    if not field(text, "VmPTE"):
        if not field(text, "Threads") or field(text, "VmSize") or not state:
            raise ReplayError(f"{path} is cut: VmPTE is missing: save the tree again")
        if state in "ZX":
            raise ProcessGoneError(f"process {pid} has ended (it is a zombie): its memory is gone already")
        if _is_exiting(root, pid):
            raise ProcessGoneError(f"process {pid} is ending: its memory is gone already")
        raise ReplayError(f"process {pid} ({name or '?'}) is a kernel thread: it has no memory of its own")

    def pages(key: str, default: str = "") -> int:
        number, _, unit = (field(text, key) or default).partition(" ")
        if not number.isdigit() or unit != "kB":
            raise ReplayError(f"{path} is cut: {key} is missing: save the tree again")
        return int(number) * 1024 // page_size

    tgid = int(field(text, "Tgid") or pid)
    if tgid != pid:
        raise ReplayError(f"{pid} is a thread of process {tgid}: capture {tgid}")
    if field(text, "Pid") not in ("", str(pid)):
        # read through another task (see `tree.by_task`): the process is called what its first one is
        with contextlib.suppress(OSError):
            name = utf8(read_file(PROC / str(pid) / "comm").rstrip("\n"))
    return Status(
        name=name,
        state=state,
        tgid=tgid,
        tracer=int(field(text, "TracerPid") or 0),
        page_tables=pages("VmPTE"),
        rss_anon=pages("RssAnon"),
        rss_file=pages("RssFile"),
        rss_shmem=pages("RssShmem"),
        swap=pages("VmSwap", "0 kB"),
        hugetlb=pages("HugetlbPages", "0 kB"),
    )


def read_places(root: Path, pid: int, page_size: int) -> list[tuple[int, int]]:
    """(first page, end page) of the VMAs that maps names, in address order, without vsyscall.

    Far cheaper than smaps, which visits every page.
    """
    path = root / str(pid) / "maps"
    try:
        places = [
            (int(first, 16) // page_size, int(last, 16) // page_size)
            for first, last in (
                line.split(" ", 1)[0].split("-") for line in _lines(read_text(root, pid, "maps"))
            )
        ]
    except ValueError:
        raise ReplayError(f"{path} is damaged: save the tree again") from None
    return [place for place in places if place[0] * page_size < 1 << 63]


def _lines(text: str) -> list[str]:
    """The lines of a file of procfs, which escapes no other end of a line that Python knows than this."""
    return text.split("\n")[:-1]


def read_vmas(root: Path, pid: int, page_size: int) -> list[Vma]:
    """The VMAs that smaps names, with VmFlags and totals, in address order, without vsyscall."""
    vmas = _parse_smaps(read_text(root, pid, "smaps"), page_size, str(root / str(pid) / "smaps"))
    return [vma for vma in vmas if vma.start * page_size < 1 << 63]


def _parse_smaps(text: str, page_size: int, path: str) -> list[Vma]:
    vmas = []
    header, values = "", dict[str, str]()
    for line in _lines(text):
        key, colon, value = line.partition(":")
        if not colon or " " in key:
            if header:
                raise ReplayError(f"{path} is cut: VmFlags is missing: save the tree again")
            header, values = line, {}
            continue
        values[key] = value.strip()
        if key == "VmFlags":
            try:
                vmas.append(_vma(header, values, page_size))
            except (KeyError, ValueError, IndexError) as error:
                raise ReplayError(
                    f"{path} is damaged near {header!r} ({error}): save the tree again"
                ) from None
            header = ""
    if header:
        raise ReplayError(f"{path} is cut: VmFlags is missing: save the tree again")
    return vmas


def _vma(header: str, values: dict[str, str], page_size: int) -> Vma:
    # at most 5 splits: names may hold spaces
    place, perms, _offset, _device, inode, *name = header.split(None, 5)
    first, last = (int(address, 16) // page_size for address in place.split("-"))

    def kib(*keys: str) -> int:
        return sum(int(values[key].split()[0]) for key in keys if key in values)

    return Vma(
        start=first,
        pages=last - first,
        perms=perms,
        flags=values["VmFlags"],
        name=name[0] if name else "",
        inode=int(inode),
        page_size=int(values["KernelPageSize"].split()[0]) * 1024,
        rss=int(values["Rss"].split()[0]) * 1024 // page_size,
        anonymous=kib("Anonymous") * 1024 // page_size,
        swap=kib("Swap") * 1024 // page_size,
        pmd_mapped=kib("AnonHugePages", "ShmemPmdMapped", "FilePmdMapped") * 1024 // page_size,
        hugetlb=kib("Shared_Hugetlb", "Private_Hugetlb") * 1024 // page_size,
    )


def base_page_size(root: Path, pid: int) -> int:
    """Bytes of a page: this machine's for its own procfs, for a saved tree what its smaps says."""
    if is_live(root):
        return os.sysconf("SC_PAGE_SIZE")
    sizes = [
        int(line.split()[1]) * 1024
        for line in _lines(read_text(root, pid, "smaps"))
        if line.startswith("KernelPageSize:")
    ]
    return min(sizes, default=4096)


def kernel_release(root: Path) -> str:
    """The kernel that the tree belongs to, as `uname -r`; empty if a saved tree does not say."""
    for name, word in (("sys/kernel/osrelease", 0), ("version", 2)):
        try:
            return (root / name).read_text().split()[word]
        except (OSError, IndexError):
            continue
    return os.uname().release if is_live(root) else ""


def open_pagemap(root: Path, pid: int) -> int:
    """/proc/PID/pagemap as a file descriptor."""
    path = f"{root}/{pid}/pagemap"
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        _refuse(error, root, pid, Path(path))


def require_procfs() -> None:
    """Raise `ReplayError` if no procfs is mounted at /proc."""
    if not (PROC / "self" / "status").exists():
        raise ReplayError(f"no procfs at {PROC}: mount it (mount -t proc proc {PROC})")


def shows_processes_only(root: Path) -> bool:
    """Whether a procfs is mounted with subset=pid, which hides everything but the folders of processes."""
    try:
        mounts = [line.split() for line in read_file(PROC / "self" / "mountinfo").splitlines()]
    except OSError:
        return False
    return any(words[4] == str(root.resolve()) and "subset=pid" in words[-1].split(",") for words in mounts)


def open_kpage(root: Path, name: str) -> int:
    """/proc/kpageflags or /proc/kpagecount (`name`) as a file descriptor."""
    path = root / name
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        if shows_processes_only(root):
            raise ReplayError(
                f"no {path}: {root} is mounted with subset=pid, which hides it: mount procfs elsewhere "
                "without, and name that with --procfs"
            ) from None
        if is_live(root):
            raise ReplayError(
                f"no {path}: the kernel lacks CONFIG_PROC_PAGE_MONITOR, or the container hides it: "
                "name the host's procfs with --procfs"
            ) from None
        raise ReplayError(f"no {path}: the saved tree is incomplete, save it again") from None
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            raise ReplayError(f"no right to read {path}: run replay as root of the host") from None
        raise ReplayError(f"cannot read {path}: {error.strerror}") from None


def saved_words(fd: int) -> int | None:
    """64-bit words in a saved file; None for a procfs file, whose size reads as 0."""
    size = os.fstat(fd).st_size
    return size // 8 if size else None


def read_words(fd: int, first: int, out: U64) -> int:
    """Read 64-bit words `first`.. into `out`; returns how many there were (fewer at the file's end).

    out: uint64, shape (n,), contiguous. Interrupted and short reads are continued.
    """
    return _read_bytes(fd, first * 8, out.view(np.uint8).data) // 8


def check_read(is_whole: bool, fd: int) -> None:
    """Raise the error that a reading without Python met, if it met one."""
    if not is_whole:
        os.pread(fd, 8, 0)
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(Path(f"/proc/self/fd/{fd}").readlink()))


def _read_bytes(fd: int, offset: int, buffer: memoryview) -> int:
    done, size = 0, len(buffer)
    while done < size:
        count = os.preadv(fd, [buffer[done : done + BLOCK_BYTES]], offset + done)
        if not count:
            break
        done += count
    return done


def kernel_config(root: Path) -> str:
    """The kernel's configuration: config.gz of the tree, else /boot/config-*; empty if neither is there."""
    with contextlib.suppress(OSError, EOFError):
        return gzip.decompress((root / "config.gz").read_bytes()).decode(errors="replace")
    with contextlib.suppress(OSError):
        return (
            Path(f"/boot/config-{kernel_release(root)}").read_text(errors="replace") if is_live(root) else ""
        )
    return ""


def _refuse(error: OSError, root: Path, pid: int, path: Path) -> NoReturn:
    """Turn a failure to open or read a file of /proc/PID into one line."""
    if error.errno == errno.ESRCH or not path.parent.exists():
        if is_live(root):
            raise ProcessGoneError(f"no process {pid}: it has ended, or never was") from None
        raise ReplayError(f"no process {pid} in {root}: the tree has no folder {path.parent}") from None
    if isinstance(error, FileNotFoundError):
        raise ReplayError(f"no {path}: the tree is incomplete, save it again") from None
    if error.errno in (errno.EACCES, errno.EPERM):
        raise ReplayError(f"no right to read {path}: run replay as root of the host") from None
    raise ReplayError(f"cannot read {path}: {error.strerror}") from None
