# SPDX-License-Identifier: Apache-2.0
"""A cost for each operation: non-negative least squares of the relative errors, with bootstrap intervals."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]

ROUNDS: Final = 10_000
"""The most rounds of coordinate descent; a dozen columns settle in a few hundred."""

SETTLED: Final = 1e-10
"""Largest relative change of a cost in the last round."""

RESAMPLES: Final = 300
"""Bootstrap samples behind an interval."""

COLLINEAR: Final = 0.999
"""A column is left out if those before it explain this share of it (R squared)."""


class Costs(NamedTuple):
    """Seconds for one operation of each column, and their 5th and 95th percentile over bootstrap samples."""

    names: tuple[str, ...]
    costs: F64
    low: F64
    high: F64


def non_negative(counts: F64, seconds: F64) -> F64:
    """The costs >= 0 that minimise the sum of squared relative errors of counts @ costs against seconds.

    counts: shape (exits, columns); seconds: shape (exits,), positive. Coordinate descent on the normal
    equations.
    """
    scaled = counts / seconds[:, None]
    size = np.linalg.norm(scaled, axis=0)
    size[size == 0] = 1
    scaled /= size
    gram, target = scaled.T @ scaled, scaled.T @ np.ones(len(seconds))
    costs = np.zeros(counts.shape[1])
    for _ in range(ROUNDS):
        largest = 0.0
        for k in range(len(costs)):
            if gram[k, k] == 0:
                continue
            new = max(0.0, costs[k] + (target[k] - gram[k] @ costs) / gram[k, k])
            largest = max(largest, abs(new - costs[k]))
            costs[k] = new
        if largest <= SETTLED * max(float(costs.max()), 1e-300):
            break
    return np.asarray(costs / size)


def told_apart(counts: F64, seconds: F64) -> list[int]:
    """The columns whose costs the exits can tell apart, in order. A column that those before it explain is
    left out.
    """
    scaled = counts / seconds[:, None]
    kept: list[int] = []
    for k in range(scaled.shape[1]):
        column = scaled[:, k]
        total = float(column @ column)
        if total == 0:
            continue
        if kept:
            others = scaled[:, kept]
            rest = column - others @ np.linalg.lstsq(others, column, rcond=None)[0]
            if float(rest @ rest) < (1 - COLLINEAR) * total:
                continue
        kept.append(k)
    return kept


def fit(names: tuple[str, ...], counts: F64, seconds: F64, seed: int = 0) -> Costs:
    """Costs of the columns that can be told apart, with intervals.

    names: of the columns; counts: shape (exits, columns); seconds: shape (exits,).
    """
    kept = told_apart(counts, seconds)
    counts = counts[:, kept]
    random = np.random.default_rng(seed)
    samples = []
    for _ in range(RESAMPLES):
        rows = random.integers(0, len(seconds), len(seconds))
        samples.append(non_negative(counts[rows], seconds[rows]))
    low, high = np.percentile(samples, [5, 95], axis=0)
    return Costs(tuple(names[k] for k in kept), non_negative(counts, seconds), low, high)


def relative_errors(costs: Costs, names: tuple[str, ...], counts: F64, seconds: F64) -> F64:
    """|estimate - measured| / measured of each exit."""
    columns = [names.index(name) for name in costs.names]
    return np.asarray(np.abs(counts[:, columns] @ costs.costs - seconds) / seconds)
