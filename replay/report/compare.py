"""Each algorithm against the baseline: what it avoids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import polars as pl

from replay.teardown.algorithms import BASELINE
from replay.teardown.counters import COMPARED, COUNTERS

KEYS: Final = ("trace", "mm", "pid", "comm")
"""What names an address space in a result."""


def compare(results: pl.DataFrame, per: Sequence[str] = KEYS) -> pl.DataFrame:
    """Add what each algorithm avoids: `<counter>_avoided` (signed) and `<counter>_avoided_pct`.

    results: a frame of `replayer.run` with the baseline's rows; per: the columns that, with `algorithm`,
    name a row, each once. The percentage is of the baseline's count; where that is 0 it is 0 too, or empty
    if the algorithm's is not.
    """
    base = results.filter(pl.col("algorithm") == BASELINE).select(
        *per, *(pl.col(name).alias(f"{name}_base") for name in COMPARED)
    )
    how: dict[str, Any] = {"on": list(per), "how": "left", "validate": "m:1"} if per else {"how": "cross"}
    joined = results.join(base, **how, maintain_order="left")
    added = []
    for name in COMPARED:
        before = pl.col(f"{name}_base")
        avoided = before - pl.col(name)
        share = pl.when(avoided == 0).then(0.0).when(before > 0).then(avoided / before * 100)
        added += [avoided.alias(f"{name}_avoided"), share.round(2).alias(f"{name}_avoided_pct")]
    return joined.with_columns(added).drop([f"{name}_base" for name in COMPARED])


def total(results: pl.DataFrame, per: Sequence[str] = ()) -> pl.DataFrame:
    """Sums over address spaces, one row for each value of `per` and algorithm; peaks are maxima.

    The column `address_spaces` says how many were summed up.
    """
    peak = "gather_pages_peak"
    sums = [pl.col(name).max() if name == peak else pl.col(name).sum() for name in COUNTERS]
    return results.group_by([*per, "algorithm"], maintain_order=True).agg(
        pl.len().alias("address_spaces"), *sums
    )
