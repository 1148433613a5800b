# SPDX-License-Identifier: Apache-2.0
"""Algorithms of the user's own: a named one with any of its choices, sizes and habits changed."""

from __future__ import annotations

import dataclasses
import itertools
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from replay.errors import ReplayError, UsageError
from replay.teardown.algorithms import (
    ALGORITHMS,
    Algorithm,
    Choice,
    Entry,
    Mapcounts,
    PageTables,
    Release,
    Rmap,
)

MOST: Final = 1_000_000_000
"""The largest size that a parameter may have: no gather of any machine has as many entries."""


class Parameter(NamedTuple):
    """One field of an `Algorithm` that a user may set.

    values: the choices, `bool`, or the smallest and largest number. constant: what it is in the kernel.
    """

    values: type[Choice] | type[bool] | tuple[int, int]
    unit: str
    constant: str
    meaning: str

    @property
    def may_be(self) -> str:
        """What a value may be, in words."""
        if isinstance(self.values, tuple):
            return f"a whole number from {self.values[0]:,} to {self.values[1]:,}"
        if issubclass(self.values, Choice):
            return f"one of {', '.join(choice.word for choice in self.values)}"
        return "true or false"


PARAMETERS: Final[dict[str, Parameter]] = {
    "entry": Parameter(Entry, "", "struct encoded_page", "what one entry of the gather holds"),
    "rmap": Parameter(
        Rmap,
        "",
        "zap_present_ptes()",
        "in what units the rmap is removed; 'range' sets delayed_rmap to false, any other value sets it to "
        "true",
    ),
    "mapcounts": Parameter(
        Mapcounts,
        "",
        "__folio_remove_rmap()",
        "what a removal does to the counts of a large folio, and when it queues the folio for a split",
    ),
    "release": Parameter(
        Release,
        "",
        "free_pages_and_swap_cache()",
        "who drops the references, and in what order folios are freed; sets release_batch and relocks as "
        "in the function's kernel, unless they are named too",
    ),
    "release_batch": Parameter(
        (0, MOST), "entries", "PAGEVEC_SIZE", "entries of one release call; 0: the whole chunk"
    ),
    "relocks": Parameter(
        bool,
        "",
        "release_pages()",
        "the lruvec lock is dropped before each large folio and every lock_batch entries, not only at the "
        "end of the call",
    ),
    "lock_batch": Parameter(
        (1, MOST), "entries", "SWAP_CLUSTER_MAX", "entries after which the lock is dropped, with relocks"
    ),
    "page_tables": Parameter(PageTables, "", "CONFIG_MMU_GATHER_RCU_TABLE_FREE", "where page-table pages go"),
    "delayed_rmap": Parameter(
        bool,
        "",
        "tlb_delay_rmap()",
        "the rmap of file pages that are dirty in the PTE waits for the TLB flush at the end of the "
        "page-table page (commit 5df397dec7c4, v6.2)",
    ),
    "thps_queued": Parameter(
        bool,
        "",
        "split_queue",
        "anonymous PMD-sized folios are on the deferred split queue from birth (commit dafff3f4c850, v6.12)",
    ),
    "drains_lru": Parameter(
        bool,
        "",
        "lru_add_drain()",
        "LRU-add and mlock batches are emptied before each release, so no folio is kept by one",
    ),
    "bundle": Parameter(
        (1, 1 << 16), "slots", "MMU_GATHER_BUNDLE", "slots of the bundle inside the mmu_gather itself"
    ),
    "batch_pages": Parameter(
        (1, 1 << 10), "pages", "MAX_GATHER_BATCH", "pages of one gather batch, a power of two"
    ),
    "batch_slots": Parameter(
        (0, 1 << 24), "slots", "MAX_GATHER_BATCH", "slots of one gather batch; 0: what batch_pages hold"
    ),
    "max_gather_entries": Parameter(
        (1, MOST),
        "slots",
        "MAX_GATHER_BATCH_COUNT",
        "slots of all batches at most; the gather has as many whole batches as fit",
    ),
    "max_folios_per_free": Parameter(
        (1, MOST), "slots", "MAX_NR_FOLIOS_PER_FREE", "slots of a gather batch that are released in one chunk"
    ),
}
"""Field of an `Algorithm` -> what a user may set it to, in the order of `replay algorithms --parameters`."""


def chosen(
    algorithms: Sequence[str | Algorithm] | str | Algorithm | None = None, page_tables: str | None = None
) -> list[Algorithm]:
    """The algorithms of these names, definitions or files, those that replay knows first; all for None.

    page_tables: "gather" or "rcu" puts it in place of each algorithm's own. Raises `UsageError`, and
    `ReplayError` for a file.
    """
    if isinstance(algorithms, str | Algorithm):
        algorithms = [algorithms]
    if page_tables not in (None, "gather", "rcu"):
        raise UsageError(f"page tables go to 'gather' or 'rcu', not to '{page_tables}'")
    found: dict[str, Algorithm] = {} if algorithms is not None else dict(ALGORITHMS)
    known = dict(ALGORITHMS)
    for wanted in algorithms or []:
        for algorithm in [wanted] if isinstance(wanted, Algorithm) else parse(wanted, known):
            if found.setdefault(algorithm.name, algorithm) != algorithm:
                raise UsageError(f"two algorithms are called '{algorithm.name}': give one another name=")
            known.setdefault(algorithm.name, algorithm)
    if not found:
        raise UsageError(f"no algorithm is named: choose from {', '.join(ALGORITHMS)}")
    order = [name for name in ALGORITHMS if name in found]
    order += [name for name in found if name not in ALGORITHMS]
    if page_tables is None:
        return [found[name] for name in order]
    where = PageTables.GATHER if page_tables == "gather" else PageTables.RCU
    return [dataclasses.replace(found[name], page_tables=where) for name in order]


def one(text: str, known: Mapping[str, Algorithm] | None = None) -> Algorithm:
    """The one algorithm of a name, a definition or a file; `UsageError` if it is more than one.

    known: algorithms of the user's own that the text may name.
    """
    if known is not None and text in known:
        return known[text]
    found = parse(text, {**ALGORITHMS, **(known or {})})
    if len(found) != 1:
        raise UsageError(f"'{text}' names {len(found)} algorithms: name one")
    return found[0]


def parse(text: str, known: Mapping[str, Algorithm] = ALGORITHMS) -> list[Algorithm]:
    """Names and definitions, separated by commas, or the path of a TOML file of them.

    `v2,mainline,release_batch=63` is v2, and mainline with one parameter changed.
    """
    if text.endswith(".toml"):
        return read_file(Path(text), known)
    parts = [part.strip() for part in text.split(",") if part.strip()]
    found: list[Algorithm] = []
    while parts:
        name = parts.pop(0)
        settings: dict[str, str] = {}
        while parts and "=" in parts[0]:
            parameter, _, value = parts.pop(0).partition("=")
            if parameter.strip() in settings:
                raise UsageError(f"'{parameter.strip()}' is set twice in '{text}'")
            settings[parameter.strip()] = value.strip()
        found.append(variant(_base(name, known), settings))
    return found


def _base(name: str, known: Mapping[str, Algorithm]) -> Algorithm:
    if "=" in name:
        raise UsageError(
            f"'{name}' names no algorithm: name one first, then a comma, as in 'mainline,release_batch=15'"
        )
    if name not in known:
        raise UsageError(f"unknown algorithm '{name}': choose from {', '.join(known)}")
    return known[name]


def read_file(path: Path, known: Mapping[str, Algorithm] = ALGORITHMS) -> list[Algorithm]:
    """The algorithms of a TOML file: a table for each, its name the table's, `base` the one it changes.

    Raises `ReplayError` if there is no such file, or anything in it is wrong.
    """
    try:
        tables = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ReplayError(f"no such file: {path}") from None
    except OSError as error:
        raise ReplayError(f"cannot read {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ReplayError(f"{path} is no TOML: {error}") from None
    found: dict[str, Algorithm] = {}
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise ReplayError(f"{path}: '{name}' is outside a table: begin one with [name-of-algorithm]")
        settings = dict(table)
        base = settings.pop("base", None)
        if not isinstance(base, str):
            raise ReplayError(f'{path}: [{name}] needs base = "NAME", the algorithm that it changes')
        try:
            settings.setdefault("name", name)
            algorithm = variant(_base(base, {**known, **found}), settings)
        except UsageError as error:
            raise ReplayError(f"{path}: [{name}]: {error}") from None
        found[algorithm.name] = algorithm
    if not found:
        raise ReplayError(f"{path} defines no algorithm: add a table [NAME] with base = and what changes")
    return list(found.values())


def vary(algorithms: Iterable[Algorithm], ranges: Sequence[str]) -> list[Algorithm]:
    """Each algorithm with each value of `parameter=value,value...`; of several, with each combination."""
    several: list[list[tuple[str, str]]] = []
    for text in ranges:
        name, separator, values = text.partition("=")
        listed = [value.strip() for value in values.split(",") if value.strip()]
        if not separator or not listed:
            raise UsageError(f"--vary takes PARAMETER=VALUE,VALUE..., not '{text}'")
        several.append([(name.strip(), value) for value in dict.fromkeys(listed)])
    names = [values[0][0] for values in several]
    if len(set(names)) < len(names):
        raise UsageError("--vary names a parameter twice: list all its values in one")
    return [
        variant(algorithm, dict(combination))
        for algorithm in algorithms
        for combination in itertools.product(*several)
    ]


def variant(base: Algorithm, settings: Mapping[str, Any]) -> Algorithm:
    """An algorithm with parameters changed, checked. Values are text, or of the parameter's own type.

    Beside `PARAMETERS` there are `name`, by default what was written, and `title`.
    """
    if not settings:
        return base
    values = {name: _value(name, value) for name, value in settings.items()}
    named, titled = values.pop("name", None), values.pop("title", None)
    changes = [f"{parameter}={_shown(value)}" for parameter, value in values.items()]
    name = named or ",".join([base.name, *changes])
    if name in ALGORITHMS:
        raise UsageError(f"name={name} is an algorithm that replay knows: choose another name")
    title = titled or " with ".join([base.name, *([", ".join(changes)] if changes else [])])
    filled = _implied(base, values)
    made = dataclasses.replace(
        base, **filled, name=name, title=title, source=f"derived from {base.name}", since=None, note=""
    )
    _check(made, values)
    return made


def encoded(algorithm: Algorithm) -> dict[str, Any]:
    """An algorithm as JSON can hold it; `decoded` is the way back."""
    return dataclasses.asdict(algorithm)


def decoded(fields: Mapping[str, Any]) -> Algorithm:
    """The algorithm that `encoded` has made a mapping of."""
    choices = {
        name: next(choice for choice in parameter.values if choice == fields[name])
        for name, parameter in PARAMETERS.items()
        if isinstance(parameter.values, type) and issubclass(parameter.values, Choice)
    }
    since, shown_by = fields["since"], tuple(fields["shown_by"])
    return Algorithm(**{**fields, **choices, "since": since and tuple(since), "shown_by": shown_by})


def _implied(base: Algorithm, values: Mapping[str, Any]) -> dict[str, Any]:
    """What a choice brings with it, unless it is set too."""
    filled: dict[str, Any] = {}
    if "release" in values:
        filled |= {"release_batch": values["release"].batch, "relocks": values["release"].relocks}
    if "rmap" in values and (values["rmap"] is Rmap.RANGE) != (base.rmap is Rmap.RANGE):
        filled["delayed_rmap"] = Entry.RANGE is not values.get("entry", base.entry)
    if "batch_pages" in values:
        filled["batch_slots"] = 0
    return filled | dict(values)


def _check(made: Algorithm, values: Mapping[str, Any]) -> None:
    """Refuse what no kernel could run, and what would change nothing."""
    if made.rmap is Rmap.RANGE and made.entry is not Entry.RANGE:
        raise UsageError(
            f"rmap=range with entry={made.entry.word}: the rmap of a range is removed by its gather entry, "
            "so the entries must be ranges: add entry=range"
        )
    if made.rmap is Rmap.RANGE and made.delayed_rmap:
        raise UsageError(
            "rmap=range with delayed_rmap=true: the rmap of every range waits for the end of the page-table "
            "page already: leave delayed_rmap out"
        )
    if made.entry is Entry.RANGE and made.delayed_rmap:
        raise UsageError(
            "entry=range with delayed_rmap=true: a range of pfns has no bit that marks a waiting rmap: add "
            "delayed_rmap=false, or rmap=range"
        )
    for name in ("bundle", "batch_slots"):
        slots = getattr(made, name)
        if 0 < slots < made.entry.most_slots:
            raise UsageError(
                f"{name}={slots} with entry={made.entry.word}: a page and its count take two slots: "
                f"give {name}=2 or more"
            )
    if "batch_pages" in values and values["batch_pages"].bit_count() != 1:
        raise UsageError(f"batch_pages={values['batch_pages']}: the kernel allocates powers of two")
    if values.get("batch_pages") and values.get("batch_slots"):
        raise UsageError("batch_pages and batch_slots both say how large a batch is: set one of them")
    if "lock_batch" in values and not made.relocks:
        raise UsageError(
            f"lock_batch={values['lock_batch']} with relocks=false: the lock is kept to the end of the call: "
            "add relocks=true"
        )


def _value(name: str, value: Any) -> Any:
    """A parameter's value, from text or as TOML has it; `UsageError` says what it may be."""
    if name in ("name", "title"):
        if not isinstance(value, str) or not value or not value.isprintable():
            raise UsageError(f"{name}={value!r}: it must be printable text")
        return value
    if name not in PARAMETERS:
        raise UsageError(
            f"unknown parameter '{name}': choose from {', '.join(PARAMETERS)}, name; "
            "'replay algorithms --parameters' explains them"
        )
    parameter = PARAMETERS[name]
    found = _convert(parameter, value)
    if found is None:
        raise UsageError(f"{name}={value}: it must be {parameter.may_be}")
    return found


def _convert(parameter: Parameter, value: Any) -> Choice | bool | int | None:
    """The value in its own type, None if it is none of the parameter's."""
    if isinstance(parameter.values, tuple):
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20:
            value = int(value)
        low, high = parameter.values
        right = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
        return value if right else None
    if issubclass(parameter.values, Choice):
        if isinstance(value, parameter.values):
            return value
        return next((choice for choice in parameter.values if choice.word == value), None)
    if isinstance(value, str):
        return {"true": True, "false": False, "yes": True, "no": False}.get(value)
    return value if isinstance(value, bool) else None


def _shown(value: Any) -> str:
    """A value as a user writes it."""
    if isinstance(value, Choice):
        return value.word
    return str(value).lower() if isinstance(value, bool) else str(value)
