# SPDX-License-Identifier: Apache-2.0
"""What this process may do, and why the kernel refuses what it should be allowed to do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from replay.procfs import files

CAPABILITIES: Final = {"CAP_DAC_READ_SEARCH": 2, "CAP_SYS_PTRACE": 19, "CAP_SYS_ADMIN": 21}
"""Capabilities that replay uses -> their numbers (include/uapi/linux/capability.h)."""

YAMA: Final = Path("/proc/sys/kernel/yama/ptrace_scope")
NOBODY: Final = "3"
"""Value of ptrace_scope with which nobody may attach, whatever their rights."""


def missing() -> list[str]:
    """The capabilities of `CAPABILITIES` that this process does not have in effect."""
    effective = int(files.field(_text(files.PROC / "self" / "status"), "CapEff") or "0", 16)
    return [name for name, number in CAPABILITIES.items() if not effective >> number & 1]


def why_not_traced(pid: int) -> str:
    """Why ptrace(2) of a process was refused, with the remedy."""
    if "CAP_SYS_PTRACE" in missing():
        return "CAP_SYS_PTRACE is missing: run replay as root with it"
    if _text(YAMA).strip() == NOBODY:
        return "yama's ptrace_scope is 3, with which nobody may trace: reboot with 2 or less"
    ours, theirs = (_link(files.PROC / who / "ns" / "user") for who in ("self", str(pid)))
    if theirs and ours != theirs:
        return "it lives in another user namespace: run replay in that of the host"
    label = _text(files.PROC / str(pid) / "attr" / "current").strip("\0\n ")
    if label and label != "unconfined":
        return f"a security module guards it (its label is {label}): allow ptrace there"
    return (
        "replay has CAP_SYS_PTRACE, so a security module or the kernel itself guards it: allow ptrace there"
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _link(path: Path) -> str:
    try:
        return os.readlink(path)  # noqa: PTH115 - it names no file
    except OSError:
        return ""
