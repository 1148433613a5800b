"""What a trace says beside its rows: how it was taken, its address spaces; and both as pairs of text."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from replay.errors import TraceError
from replay.trace.schema import FORMAT_VERSION


@dataclasses.dataclass(frozen=True)
class AddressSpace:
    """What is known of one address space beside its extents; figures in pages.

    `page_tables` is VmPTE, `rss_anon` to `hugetlb` are the figures of /proc/PID/status at capture. `cmdline`:
    /proc/PID/cmdline with spaces between the arguments, empty where it was not kept. `ended_by`: what tore it
    down after a capture in mode `exit`: `exit` or `exec`.
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


@dataclasses.dataclass(frozen=True)
class Metadata:
    """How and where a trace was taken.

    `mode`: `live` or `exit`. `held`: how the process was kept still (`ptrace`, `cgroup`, `none`).
    `pmd`: whether PMD mappings are `known` (PAGEMAP_SCAN, or smaps totals that leave one reading) or
    `unknown`. `mapcounts`: `precise`, `average` (CONFIG_NO_PAGE_MAPCOUNT) or `unknown`. `dirty`:
    `known` or `inferred` by the rule (not anonymous, VMA shared and writable, folio dirty).
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


LATER: Final = ("what_if", "part", "cmdline")
"""Fields that came after the first traces: where one is empty it is left out of the file."""


def encode_metadata(meta: Metadata) -> dict[str, str]:
    """Key-value pairs of the Parquet footer."""
    pairs = {}
    for field in dataclasses.fields(meta):
        value = getattr(meta, field.name)
        if field.name == "address_spaces":
            value = [_without_empty(dataclasses.asdict(space)) for space in value]
        elif field.name in LATER and not value:
            continue
        pairs[field.name] = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
    return pairs


def _without_empty(space: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in space.items() if value or name not in LATER}


def decode_metadata(pairs: Mapping[str, str], path: Path) -> Metadata:
    """Footer pairs -> `Metadata`; `TraceError` where one is missing or makes no sense."""
    version = pairs.get("format_version")
    if version is None:
        raise TraceError(f"{path} is a Parquet file but not a trace: make one with 'replay capture PID'")
    if version != str(FORMAT_VERSION):
        raise TraceError(
            f"{path} is a trace of format version {version}, this replay reads version {FORMAT_VERSION}: "
            "capture it again, or use the replay that wrote it"
        )
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Metadata):
        if field.name not in pairs:
            if field.name in LATER:
                continue
            raise TraceError(
                f"{path}: metadata '{field.name}' is missing: the trace is damaged, capture it again"
            )
        text = pairs[field.name]
        try:
            values[field.name] = text if field.type == "str" else json.loads(text)
            if field.name == "address_spaces":
                values[field.name] = tuple(_address_space(item) for item in values[field.name])
            elif not isinstance(values[field.name], _JSON_TYPES.get(str(field.type), object)):
                raise TypeError(f"expected {field.type}")
        except (ValueError, TypeError, KeyError) as error:
            raise TraceError(
                f"{path}: metadata '{field.name}' is not valid ({error}): the trace is damaged, "
                "capture it again"
            ) from None
    return Metadata(**values)


_JSON_TYPES: Final[dict[str, type]] = {"int": int, "bool": bool, "str": str, "Mapping[str, str]": dict}


MAX_TABLES: Final = 1 << 31
"""Page-table pages of one address space: more than any has, and still replayed in a moment."""


def _address_space(item: dict[str, Any]) -> AddressSpace:
    space = AddressSpace(**item)
    texts: dict[str, Any] = {}
    for field in dataclasses.fields(space):
        value = getattr(space, field.name)
        if field.type == "str":
            if not isinstance(value, str):
                raise TypeError(f"{field.name} is not text")
            if field.name == "ended_by" and value not in ("exit", "exec"):
                raise ValueError(f"ended_by = {value!r} of pid {item.get('pid')}")
            # JSON may hold what UTF-8 cannot
            texts[field.name] = value.encode(errors="backslashreplace").decode()
        elif not isinstance(value, int) or not 0 <= value < (
            MAX_TABLES if field.name == "page_tables" else 1 << 52
        ):
            raise ValueError(f"{field.name} = {value!r} of pid {item.get('pid')}")
    return dataclasses.replace(space, **texts)
