# SPDX-License-Identifier: Apache-2.0
"""Each algorithm against the baseline: what it avoids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import polars as pl

from replay.errors import UsageError
from replay.teardown.algorithms import BASELINE
from replay.teardown.counters import COUNTERS

KEYS: Final = ("trace", "mm", "pid", "comm")
"""What names an address space in a result."""


def compare(results: pl.DataFrame, per: Sequence[str] = KEYS, baseline: str = BASELINE) -> pl.DataFrame:
    """Add what each algorithm avoids of every counter: `<counter>_avoided` (signed), `<counter>_avoided_pct`.

    results: a frame of `replayer.run` with rows of the baseline; per: the columns that, with `algorithm`,
    name a row, each once; baseline: the algorithm that the others are compared with. The percentage is of
    the baseline's count; where that is 0 it is 0 too, or empty if the algorithm's is not.

    Raises `UsageError` if rows of the baseline are missing.
    """
    base = results.filter(pl.col("algorithm") == baseline).select(
        *per, *(pl.col(name).alias(f"{name}_base") for name in COUNTERS)
    )
    how: dict[str, Any] = {"on": list(per), "how": "left", "validate": "m:1"} if per else {"how": "cross"}
    without = results.join(base, on=list(per), how="anti").height if per else results.height * (1 - len(base))
    if without > 0:
        raise UsageError(
            f"the results have no rows of '{baseline}' to compare with: replay that algorithm too, or name "
            "another baseline"
        )
    joined = results.join(base, **how, maintain_order="left")
    added = []
    for name in COUNTERS:
        before = pl.col(f"{name}_base")
        avoided = before - pl.col(name)
        share = pl.when(avoided == 0).then(0.0).when(before > 0).then(avoided / before * 100)
        added += [avoided.alias(f"{name}_avoided"), share.round(2).alias(f"{name}_avoided_pct")]
    return joined.with_columns(added).drop([f"{name}_base" for name in COUNTERS])


def percent(count: float, base: float) -> str:
    """The change from `base`, which is not 0, to `count`, in percent: `+12.3`.

    A small change is never shown as 0, nor a small rest as -100.
    """
    change = (count - base) / base * 100
    texts = [f"{change:+.{digits}f}" for digits in range(1, 7)]
    told = (text for text in texts if float(text) != 0 and (float(text) != -100 or count == 0))
    return next(told, texts[-1])


def equal(results: pl.DataFrame) -> list[list[str]]:
    """Groups of algorithms that count alike in every counter of every address space, each of two or more."""
    groups: dict[tuple[object, ...], list[str]] = {}
    columns = [name for name in (*KEYS, *COUNTERS) if name in results.columns]
    for (name,), rows in results.group_by("algorithm", maintain_order=True):
        hashed = rows.select(columns).hash_rows().to_list()
        groups.setdefault(tuple(hashed), []).append(str(name))
    return [names for names in groups.values() if len(names) > 1]


SPACES: Final = "address_spaces"
"""The column that says how many address spaces were summed up."""


def total(results: pl.DataFrame, per: Sequence[str] = ()) -> pl.DataFrame:
    """Sums over address spaces, one row for each value of `per` and algorithm; peaks are maxima.

    The column `address_spaces` says how many were summed up.
    """
    peak = "gather_pages_peak"
    spaces = pl.col(SPACES).sum() if SPACES in results.columns else pl.len()
    sums = [pl.col(name).max() if name == peak else pl.col(name).sum() for name in COUNTERS]
    return results.group_by([*per, "algorithm"], maintain_order=True).agg(spaces.alias(SPACES), *sums)
