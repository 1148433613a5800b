# SPDX-License-Identifier: Apache-2.0
"""Where each capture comes from: `provenance.json`, and the table made of it and of the traces."""

import dataclasses
import json
from pathlib import Path

import polars as pl

from replay.trace.file import read_metadata
from replay.trace.metadata import Metadata

FILE = "provenance.json"

TREES = (
    "Traces of mode `exit` hold every process of a command, each read at its exit. They leave out the "
    "address spaces that an exec replaced, as `record --no-exec` does. A vfork child shares the address "
    "space of its parent, so it is not there either."
)


@dataclasses.dataclass(frozen=True)
class Provenance:
    """What the trace itself does not say. kept: which processes of a command tree are in it."""

    program: str
    started: str
    state: str
    kept: str = ""


def add(folder: Path, name: str, entry: Provenance) -> None:
    """Note where captures/<name>.parquet comes from, and make the table again."""
    known = _known(folder) | {name: dataclasses.asdict(entry)}
    present = {name: entry for name, entry in sorted(known.items()) if (folder / f"{name}.parquet").exists()}
    (folder / FILE).write_text(json.dumps(present, indent=1, ensure_ascii=False) + "\n")
    (folder / "README.md").write_text(_page(folder, present))


def _known(folder: Path) -> dict[str, dict[str, str]]:
    path = folder / FILE
    return json.loads(path.read_text()) if path.exists() else {}


def _page(folder: Path, entries: dict[str, dict[str, str]]) -> str:
    metas = {name: read_metadata(folder / f"{name}.parquet") for name in entries}
    total = sum((folder / f"{name}.parquet").stat().st_size for name in entries)
    lines = [
        "# Captures",
        "",
        "Page tables of real programs, made by `scripts/capture_corpus`, which also writes this page. "
        f"{len(entries)} traces, {total / 1e6:.1f} MB. To make them again: as root on a Debian system, with "
        "the Python that has replay: `.venv/bin/python scripts/capture_corpus`. It installs what is missing. "
        f"[FORMAT.md](FORMAT.md) describes the files. [{FILE}]({FILE}) has what the "
        "last two sections say, as JSON.",
        "",
        "## What they hold",
        "",
        _row(
            "file",
            "mode",
            "address spaces",
            "pages",
            "extents",
            "bytes",
            "THP and folio sizes",
            "date",
        ),
        _row("---", "---", "---:", "---:", "---:", "---:", "---", "---"),
        *(_figures(folder / f"{name}.parquet", meta) for name, meta in metas.items()),
        "",
        "pages: of all entries of the page tables, swap entries and special ones included. THP: `enabled`; "
        "folio sizes: those of `hugepages-*kB/enabled` that are not `never`. "
        f"Kernels: {', '.join(sorted({f'{m.kernel_release} {m.architecture}' for m in metas.values()}))}.",
        "",
        "## How they were made",
        "",
        _row("file", "program", "started by", "state", "to make it again"),
        _row("---", "---", "---", "---", "---"),
        *(
            _row(
                f"`{name}`",
                entry["program"],
                f"`{entry['started']}`",
                entry["state"],
                f"`scripts/capture_corpus --only {name}`",
            )
            for name, entry in entries.items()
        ),
    ]
    lines += ["", "## Which processes of a command tree", "", TREES, ""]
    lines += [f"- `{name}`: {entry['kept']}" for name, entry in entries.items() if entry["kept"]]
    return "\n".join(lines) + "\n"


def _figures(path: Path, meta: Metadata) -> str:
    rows, pages = pl.scan_parquet(path).select(pl.len(), pl.col("pages").sum()).collect().row(0)
    return _row(
        f"`{path.name}`",
        meta.mode,
        f"{len(meta.address_spaces):,}",
        f"{pages:,}",
        f"{rows:,}",
        f"{path.stat().st_size:,}",
        thp_settings(meta),
        meta.captured_at[:10],
    )


def thp_settings(meta: Metadata) -> str:
    """`madvise; 32kB always, 2048kB inherit`."""
    sizes = {
        key.removeprefix("hugepages-").removesuffix("/enabled"): value
        for key, value in meta.thp.items()
        if key.endswith("/enabled") and value != "never"
    }
    listed = ", ".join(f"{size} {sizes[size]}" for size in sorted(sizes, key=lambda text: int(text[:-2])))
    return f"{meta.thp.get('enabled', 'unknown')}; {listed}"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
