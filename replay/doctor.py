# SPDX-License-Identifier: Apache-2.0
"""What of replay works on this machine, found by trying it, and how to get what does not."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple

from replay.errors import ReplayError
from replay.jit import cache
from replay.process import rights
from replay.procfs import files, kernel, own_page, pagemap_scan
from replay.support.text import counted

TRACEPOINTS: Final = ("kmem/mm_page_free", "kmem/mm_page_free_batched", "tlb/tlb_flush", "mmap/exit_mmap")

DOCKER: Final = "in Docker: --cap-add SYS_ADMIN --cap-add SYS_PTRACE --pid host"


class State(StrEnum):
    """How a check came out."""

    WORKS = "works"
    LIMITED = "limited"
    FAILS = "fails"


class Check(NamedTuple):
    """One line: what was tried, how it came out, what was found, what to do about it."""

    name: str
    state: State
    found: str
    remedy: str = ""


ONLY_VALIDATE: Final = "; only 'replay validate' needs them"


def _failed(name: str, error: ReplayError, more: str = "") -> Check:
    """A check that an error ended: its message names the cause, and behind the last colon the remedy.

    Only a message of the system, which begins with a capital letter, has no remedy.
    """
    found, _, remedy = str(error).rpartition(": ")
    if not remedy[:1].islower():
        found, remedy = str(error), "run replay as root of the host, outside of any container"
    return Check(name, State.FAILS, found, remedy + more)


def examine() -> Iterator[Check]:
    """Try everything; nothing is changed, and no process but replay itself is looked at."""
    files.require_procfs()
    checks: tuple[Callable[[], Check], ...] = (
        _rights,
        _namespaces,
        _page_frames,
        lambda: _kpage("kpageflags"),
        lambda: _kpage("kpagecount"),
        _pagemap_scan,
        _mapcounts,
        _soft_dirty,
        _ptrace,
        _tracepoints,
        _call_counts,
        _thp,
        _mthp,
        _swap,
        _compiled_code,
    )
    for check in checks:
        yield check()


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _rights() -> Check:
    missing = rights.missing()
    who = f"uid {os.geteuid()}"
    if not missing:
        return Check("rights", State.WORKS, f"{who}, {', '.join(rights.CAPABILITIES)}")
    return Check("rights", State.FAILS, f"{who} without {', '.join(missing)}", f"run as root; {DOCKER}")


def _namespaces() -> Check:
    user_map = _text("/proc/self/uid_map").split()
    if user_map[:3] != ["0", "0", "4294967295"]:
        return Check(
            "namespaces",
            State.FAILS,
            "a user namespace: its root has no rights over page frames",
            "run replay outside it, as root of the host",
        )
    if not files.in_first_pid_namespace():
        return Check(
            "namespaces",
            State.LIMITED,
            "a PID namespace: only its own processes are seen, and validate cannot work",
            "share the host's (--pid host), or mount its procfs and use --procfs with --no-freeze",
        )
    return Check("namespaces", State.WORKS, "those of the host")


def _page_frames() -> Check:
    try:
        with own_page.own_frame() as frame:
            if frame:
                return Check("pagemap", State.WORKS, "page frames are shown")
    except ReplayError as error:
        return _failed("pagemap", error)
    return Check("pagemap", State.FAILS, "page frames read as 0", f"run as root; {DOCKER}")


def _kpage(name: str) -> Check:
    try:
        with own_page.own_frame() as frame:
            descriptor = files.open_kpage(files.PROC, name)
            try:
                own_page.check_kpage(descriptor, files.PROC / name, frame)
            finally:
                os.close(descriptor)
    except ReplayError as error:
        return _failed(name, error)
    if not frame:
        return Check(name, State.LIMITED, "can be opened; without page frames it says nothing", DOCKER)
    return Check(name, State.WORKS, f"says of a page of our own: {own_page.EXPECTED[name]}")


def _pagemap_scan() -> Check:
    if pagemap_scan.supported():
        return Check(
            "PAGEMAP_SCAN",
            State.WORKS,
            "tells which parts of an address space are populated, and PMD mappings",
        )
    return Check(
        "PAGEMAP_SCAN",
        State.LIMITED,
        "missing (before v6.7): address spaces are read whole, and smaps tells only the sum of PMD mappings",
        "use a newer kernel; traces say where a PMD mapping is a guess",
    )


def _mapcounts() -> Check:
    if not files.kernel_config(files.PROC):
        return Check(
            "mapcounts",
            State.LIMITED,
            "taken for precise: no /proc/config.gz and no /boot/config to tell",
            "make sure that CONFIG_NO_PAGE_MAPCOUNT is off (it is experimental, from v6.15)",
        )
    if kernel.mapcounts(files.PROC) == "precise":
        return Check("mapcounts", State.WORKS, "precise, page by page")
    return Check(
        "mapcounts",
        State.LIMITED,
        "averages for large folios that several address spaces map (CONFIG_NO_PAGE_MAPCOUNT)",
        "their counts are approximate; a kernel without the option gives exact ones",
    )


def _soft_dirty() -> Check:
    known = "CONFIG_MEM_SOFT_DIRTY=y" in files.kernel_config(files.PROC)
    return Check(
        "soft-dirty",
        State.WORKS,
        "recorded" if known else "always false on this kernel; no replay depends on it",
    )


def _ptrace() -> Check:
    scope = _text("/proc/sys/kernel/yama/ptrace_scope")
    if scope == "3":
        return Check(
            "ptrace",
            State.FAILS,
            "Yama's ptrace_scope is 3: nobody may attach",
            "reboot with it at 2 or less",
        )
    found = f"Yama's ptrace_scope is {scope}" if scope else "no restriction (Yama is off)"
    return Check("ptrace", State.WORKS, found)


def _tracepoints() -> Check:
    from replay.validate import tracefs

    try:
        with tracefs.mounted() as (path, _):
            missing = [name for name in TRACEPOINTS if not (path / "events" / name).is_dir()]
    except ReplayError as error:
        return _failed("tracepoints", error, ONLY_VALIDATE)
    if missing:
        return Check("tracepoints", State.LIMITED, f"without {', '.join(missing)}")
    return Check("tracepoints", State.WORKS, ", ".join(TRACEPOINTS))


def _call_counts() -> Check:
    from replay.validate import calls, probes, tracefs

    name, remedy = "call counts", "folios are compared all the same; scripts/kernel_lab boots such a kernel"
    try:
        with tracefs.mounted() as (path, _):
            available = probes.available(path)
    except ReplayError as error:
        return _failed(name, error, ONLY_VALIDATE)
    if not available:
        return Check(
            name,
            State.LIMITED,
            "not compared by 'replay validate': no kprobe events (CONFIG_KPROBE_EVENTS)",
            remedy,
        )
    found = probes.chosen(probes.functions())
    counters = calls.shown({probe.event for probe in found}, platform.machine() in probes.REGISTERS)
    if not counters:
        return Check(
            name,
            State.LIMITED,
            "not compared by 'replay validate': this kernel does not have the functions, or hides them "
            "(/proc/kallsyms)",
            remedy,
        )
    return Check(name, State.WORKS, f"'replay validate' compares {len(counters)} counters by kprobe events")


def _thp() -> Check:
    found = {name: value for name, value in kernel.thp(True).items() if "/" not in name}
    if not found:
        return Check("THP", State.LIMITED, "this kernel has none", "CONFIG_TRANSPARENT_HUGEPAGE")
    return Check("THP", State.WORKS, ", ".join(f"{name} {value}" for name, value in found.items()))


def _mthp() -> Check:
    found = {name: value for name, value in kernel.thp(True).items() if name.endswith("/enabled")}
    if not found:
        return Check("mTHP", State.LIMITED, "no sizes but the PMD's", "large anonymous folios need v6.8")
    return Check("mTHP", State.WORKS, _sizes_on(found, kernel.thp(True).get("enabled", "unknown")))


def _sizes_on(switches: Mapping[str, str], of_all: str) -> str:
    """The sizes that are not off. of_all: the switch of THP, which a size may inherit."""
    on = {
        name.split("/")[0].removeprefix("hugepages-"): f"inherit, so {of_all}"
        if value == "inherit"
        else value
        for name, value in switches.items()
        if value != "never"
    }
    told = ", ".join(f"{size} ({value})" for size, value in on.items())
    return f"{len(switches)} sizes; enabled: {told or 'none'}"


def _swap() -> Check:
    devices = _text("/proc/swaps").splitlines()[1:]
    if not devices:
        return Check("swap", State.WORKS, "no device: no page is swapped out here")
    return Check("swap", State.WORKS, f"{counted(len(devices), 'device')}: swap entries are captured")


def machine() -> str:
    """One line on the kernel and the machine."""
    page = os.sysconf("SC_PAGE_SIZE") // 1024
    return f"Linux {platform.release()} {platform.machine()}, {page} KiB pages, {os.cpu_count()} CPUs"


def _compiled_code() -> Check:
    place = cache.find(make=False)
    if not place.trouble:
        return Check("compiled code", State.WORKS, f"kept in {place.folder}")
    return Check(
        "compiled code",
        State.LIMITED,
        f"cannot be kept: {place.trouble}: each command compiles anew, which takes seconds",
        cache.REMEDY,
    )
