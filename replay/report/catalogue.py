# SPDX-License-Identifier: Apache-2.0
"""The algorithms, parameters, counters and limits of the model as text or JSON."""

from __future__ import annotations

import json
import textwrap

from replay.teardown.algorithms import ALGORITHMS, NOT_MODELLED, Algorithm
from replay.teardown.counters import COUNTERS
from replay.teardown.variants import PARAMETERS


def described(algorithm: Algorithm) -> dict[str, str]:
    """One algorithm in words."""
    delayed = "; dirty file pages: at the end of the page-table page" if algorithm.delayed_rmap else ""
    batch = algorithm.release_batch
    calls = f"on batches of {batch}" if batch else "on each chunk of a gather batch"
    return {
        "name": algorithm.name,
        "title": algorithm.title,
        "source": algorithm.source,
        "stands for": algorithm.stands_for,
        "gather entry": algorithm.entry.text,
        "rmap removal": algorithm.rmap.text + delayed,
        "counts of a large folio": algorithm.mapcounts.text,
        "release": f"{algorithm.release.text}, {calls}",
        "page tables": algorithm.page_tables.text,
        "LRU and mlock batches": "drained before each release" if algorithm.drains_lru else "not drained",
        "note": algorithm.note,
    }


def parameters() -> list[dict[str, str]]:
    """Each parameter in words, with its value in each algorithm where they differ."""
    return [
        {
            "name": name,
            "meaning": parameter.meaning,
            "values": parameter.may_be,
            "unit": parameter.unit,
            "kernel": parameter.constant,
            "default": _default(name),
        }
        for name, parameter in PARAMETERS.items()
    ]


def _default(name: str) -> str:
    """The value of a parameter in the built-in algorithms: one value, or each value with the algorithms that
    have it.
    """
    having: dict[str, list[str]] = {}
    for algorithm in ALGORITHMS.values():
        value = getattr(algorithm, name)
        having.setdefault(getattr(value, "word", str(value).lower()), []).append(algorithm.name)
    if len(having) == 1:
        return next(iter(having))
    return "; ".join(f"{value} in {', '.join(names)}" for value, names in having.items())


def as_json(with_parameters: bool = False) -> str:
    """Algorithms, counters with their meaning, and what is not modelled; or the parameters."""
    if with_parameters:
        return json.dumps(parameters(), indent=2)
    return json.dumps(
        {
            "algorithms": [described(algorithm) for algorithm in ALGORITHMS.values()],
            "counters": COUNTERS,
            "not_modelled": list(NOT_MODELLED),
        },
        indent=2,
    )


def as_text() -> str:
    """Algorithms, counters and limits of the model as text."""
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


def parameters_as_text() -> str:
    """The parameters that a user may change, as text."""
    lines = ["Change any of these in a named algorithm: replay run TRACE -a 'mainline,release_batch=63'", ""]
    for words in parameters():
        unit = f" ({words['unit']})" if words["unit"] else ""
        lines.append(f"{words['name']}{unit}: {words['values']}")
        lines += [
            _wrapped(f"{key}: {words[key]}", "    ") for key in ("meaning", "kernel", "default") if words[key]
        ]
    return "\n".join(lines)


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(text, 100, initial_indent=indent, subsequent_indent=indent + "  ")
