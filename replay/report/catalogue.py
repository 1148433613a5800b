"""The algorithms, counters and limits of the model as text or JSON."""

from __future__ import annotations

import json
import textwrap

from replay.teardown.algorithms import ALGORITHMS, NOT_MODELLED, Algorithm, Entry, Release, Rmap
from replay.teardown.counters import COUNTERS

ENTRIES = {
    Entry.PAGE: "a page",
    Entry.PAGE_RUN: "a page, or a page and a count in two slots",
    Entry.RANGE: "a range of pages of one folio",
}
RMAPS = {
    Rmap.PTE: "per PTE, at once",
    Rmap.ANON_RUN: "per contiguous run of an anonymous large folio; else per PTE",
    Rmap.RUN: "per contiguous run of one folio, at once",
    Rmap.RANGE: "per gathered range, at the end of each page-table page",
}
RELEASES = {
    Release.RELEASE_PAGES: "release_pages() on each piece of a gather batch, page by page",
    Release.FOLIOS_PUT: "folios_put() on batches of 15",
    Release.FOLIOS_PUT_REFS: "folios_put_refs() on each piece of a gather batch, range by range",
    Release.FOLIOS_PUT_REFS_BATCH: "folios_put_refs() on batches of 31",
}


def described(algorithm: Algorithm) -> dict[str, str]:
    """One algorithm in words."""
    delayed = (
        " (dirty file pages: delayed to the end of the page-table page)" if algorithm.delayed_rmap else ""
    )
    return {
        "name": algorithm.name,
        "title": algorithm.title,
        "source": algorithm.source,
        "gather entry": ENTRIES[algorithm.entry],
        "rmap removal": RMAPS[algorithm.rmap] + delayed,
        "release": RELEASES[algorithm.release],
        "note": algorithm.note,
    }


def as_json() -> str:
    """Algorithms, counters with their meaning, and what is not modelled."""
    return json.dumps(
        {
            "algorithms": [described(algorithm) for algorithm in ALGORITHMS.values()],
            "counters": COUNTERS,
            "not_modelled": list(NOT_MODELLED),
        },
        indent=2,
    )


def as_text() -> str:
    """The same to read."""
    lines = []
    for algorithm in ALGORITHMS.values():
        words = described(algorithm)
        lines.append(f"{words.pop('name')}: {words.pop('title')}")
        lines += [_wrapped(f"{key}: {value}", "    ") for key, value in words.items() if value]
        lines.append("")
    lines.append("Counters")
    lines += [_wrapped(f"{name}: {meaning}", "    ") for name, meaning in COUNTERS.items()]
    lines += ["", "Not modelled"]
    lines += [_wrapped(limit, "    ") for limit in NOT_MODELLED]
    return "\n".join(lines)


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(text, 100, initial_indent=indent, subsequent_indent=indent + "  ")
