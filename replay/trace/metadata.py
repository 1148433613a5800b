# SPDX-License-Identifier: Apache-2.0
"""What a trace says beside its rows: how it was taken, its address spaces; and both as pairs of text."""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from replay.errors import TraceError
from replay.trace.schema import FIRST_VERSION, FORMAT_VERSION

FIGURES: Final = {
    "rss_anon": "RssAnon",
    "rss_file": "RssFile",
    "rss_shmem": "RssShmem",
    "swap": "VmSwap",
    "hugetlb": "HugetlbPages",
}
"""Figures of an address space, in pages: field of `AddressSpace` -> field of /proc/PID/status."""

UNCOUNTED: Final = ("special", "marker")
"""Kinds of pages that no figure counts."""


@dataclasses.dataclass(frozen=True)
class AddressSpace:
    """What is known of one address space beside its extents; figures in pages.

    `page_tables` is VmPTE, `rss_anon` to `hugetlb` are the figures of /proc/PID/status at capture. `cmdline`:
    /proc/PID/cmdline with spaces between the arguments, empty where it was not kept. `ended_by`: what tore it
    down after a capture in mode `exit`: `exit` or `exec`. `unaccounted`: by how many pages the rows exceed a
    figure, for each figure where that is not 0, and pages of `UNCOUNTED`; None where nobody wrote that down.
    `held_ms`: milliseconds for which the capture held the process. `shared_with`: other processes that use
    the same address space.
    """

    pid: int
    comm: str
    page_tables: int
    rss_anon: int = 0
    rss_file: int = 0
    rss_shmem: int = 0
    swap: int = 0
    hugetlb: int = 0
    cmdline: str = ""
    ended_by: str = "exit"
    unaccounted: Mapping[str, int] | None = None
    held_ms: float = 0.0
    shared_with: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Metadata:
    """How and where a trace was taken.

    `mode`: `live` or `exit`. `held`: how the process was kept still (`ptrace`, `cgroup`, `none`).
    `pmd`: whether PMD mappings are `known` (PAGEMAP_SCAN, or smaps totals that leave one reading) or
    `unknown`. `mapcounts`: `precise`, `average` (CONFIG_NO_PAGE_MAPCOUNT: of large folios that others map
    too) or `unknown`. `dirty`: `known` or `inferred` by the rule (not anonymous, VMA shared and writable,
    folio dirty).
    `changed_entries`: pagemap entries that a second look found changed. `what_if`: how the folios differ from
    those captured, empty for a trace as captured. `part`: which part of a trace this is, empty for a whole
    one.
    """

    address_spaces: tuple[AddressSpace, ...]
    kernel_release: str = ""
    architecture: str = "x86_64"
    page_size: int = 4096
    captured_at: str = ""
    mode: str = "live"
    held: str = "none"
    pmd: str = "known"
    mapcounts: str = "precise"
    dirty: str = "inferred"
    changed_entries: int = 0
    redacted: bool = False
    what_if: str = ""
    part: str = ""
    thp: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tool_version: str = ""
    format_version: int = FORMAT_VERSION


LATER: Final = frozenset(
    ("what_if", "part", "cmdline", "ended_by", "unaccounted", "held_ms", "shared_with", "format_version")
)
"""Fields that version 1 does not have, and that a file may lack."""

MAX_TABLES: Final = 1 << 31
"""Page-table pages of one address space: more than any has, and still replayed in a moment."""

MAX_PAGES: Final = 1 << 52
"""Figures of an address space are below this on every 64-bit architecture."""

MAX_PID: Final = 1 << 22
"""PID_MAX_LIMIT of include/linux/threads.h: PIDs are below it, or equal."""

WORDS: Final[Mapping[str, tuple[str, ...]]] = {
    "mode": ("live", "exit"),
    "held": ("ptrace", "cgroup", "none"),
    "pmd": ("known", "unknown"),
    "mapcounts": ("precise", "average", "unknown"),
    "dirty": ("known", "inferred"),
}
"""Fields of `Metadata` that are one of a few words."""


def encode_metadata(meta: Metadata) -> dict[str, str]:
    """Key-value pairs of the Parquet footer."""
    pairs = {}
    for field in dataclasses.fields(meta):
        value = getattr(meta, field.name)
        if field.name == "address_spaces":
            value = [_as_json(space) for space in value]
        pairs[field.name] = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return pairs


def _as_json(space: AddressSpace) -> dict[str, Any]:
    """An address space without the later fields that say nothing: a trace may hold 100,000 of them."""
    return {
        name: value
        for name, value in vars(space).items()
        if name not in LATER
        or (value and not (name == "ended_by" and value == "exit"))
        or (name == "unaccounted" and value is not None)
    }


def decode_metadata(pairs: Mapping[str, str], path: Path) -> Metadata:
    """Footer pairs -> `Metadata`; `TraceError` where one is missing or makes no sense."""
    version = pairs.get("format_version")
    if version is None:
        raise TraceError(f"{path} is a Parquet file but not a trace: make one with 'replay capture PID'")
    if version not in map(str, range(FIRST_VERSION, FORMAT_VERSION + 1)):
        raise TraceError(
            f"{path} is a trace of format version {version}, this replay reads versions {FIRST_VERSION} to "
            f"{FORMAT_VERSION}: capture it again, or use the replay that wrote it"
        )
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Metadata):
        text = pairs.get(field.name)
        if text is None:
            if field.name in LATER:
                continue
            raise TraceError(
                f"{path}: metadata '{field.name}' is missing: the trace is damaged, capture it again"
            )
        try:
            values[field.name] = _decoded(field, text)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise TraceError(
                f"{path}: metadata '{field.name}' is not valid ({error}): the trace is damaged, "
                "capture it again"
            ) from None
    return Metadata(**values)


def _decoded(field: dataclasses.Field[Any], text: str) -> Any:
    """The value of one field of `Metadata`."""
    if field.name == "captured_at" and text:
        datetime.datetime.fromisoformat(text)
    if field.name == "architecture" and not re.fullmatch(r"\w+", text, re.ASCII):
        raise ValueError(f"{text!r} is no name of an architecture")
    if field.type == "str":
        if text not in WORDS.get(field.name, (text,)):
            raise ValueError(f"{text!r} is none of {', '.join(WORDS[field.name])}")
        return text
    value = json.loads(text)
    if field.name == "address_spaces":
        if not isinstance(value, list):
            raise TypeError("expected a list")
        return tuple(_address_space(item) for item in value)
    if field.name == "thp":
        if not isinstance(value, dict) or not all(isinstance(found, str) for found in value.values()):
            raise TypeError("expected names and words")
        return value
    expected = bool if field.type == "bool" else int
    if type(value) is not expected or not 0 <= value < MAX_PAGES:
        raise TypeError(f"expected {field.type}")
    return value


def _address_space(item: Any) -> AddressSpace:
    if not isinstance(item, dict):
        raise TypeError("expected objects")
    space = AddressSpace(**item)
    who = f"of pid {item.get('pid')}"
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(space):
        value = getattr(space, field.name)
        if field.type == "str":
            if not isinstance(value, str):
                raise TypeError(f"{field.name} is not text")
            # JSON may hold what UTF-8 cannot
            changes[field.name] = value.encode(errors="backslashreplace").decode()
        elif field.type == "int":
            _check_number(value, MAX_NUMBERS.get(field.name, MAX_PAGES), f"{field.name} = {value!r} {who}")
    if space.ended_by not in ENDED_BY:
        raise ValueError(f"ended_by = {space.ended_by!r} {who}")
    if not isinstance(space.held_ms, (int, float)) or not 0 <= space.held_ms < MAX_PAGES:
        raise ValueError(f"held_ms = {space.held_ms!r} {who}")
    if not isinstance(space.shared_with, (list, tuple)):
        raise TypeError(f"shared_with = {space.shared_with!r} {who}")
    for pid in space.shared_with:
        _check_number(pid, MAX_PID + 1, f"shared_with = {space.shared_with!r} {who}")
    if space.unaccounted is not None:
        _check_unaccounted(space, who)
    return dataclasses.replace(space, shared_with=tuple(space.shared_with), **changes)


MAX_NUMBERS: Final = {"page_tables": MAX_TABLES, "pid": MAX_PID + 1}

ENDED_BY: Final = ("exit", "exec")


def _check_number(value: Any, limit: int, what: str) -> None:
    if type(value) is not int or not 0 <= value < limit:
        raise ValueError(what)


def _check_unaccounted(space: AddressSpace, who: str) -> None:
    """Rows and figure together are no fewer than no page."""
    found = space.unaccounted
    if not isinstance(found, dict) or not found.keys() <= {*FIGURES, *UNCOUNTED}:
        raise ValueError(f"unaccounted = {found!r} {who}")
    for name, more in found.items():
        if type(more) is not int or not -getattr(space, name, 0) <= more < MAX_PAGES:
            raise ValueError(f"unaccounted = {found!r} {who}")
