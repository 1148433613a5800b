# SPDX-License-Identifier: Apache-2.0
"""Costs are found again where they are known, and what the data cannot tell apart is left out."""

from __future__ import annotations

import numpy as np

from replay.cost import fit


def made_up(noise: float) -> tuple[fit.F64, fit.F64, fit.F64]:
    random = np.random.default_rng(3)
    counts = random.uniform(0, 1e6, (40, 3))
    costs = np.array([40e-9, 0.0, 250e-9])
    return counts, counts @ costs * random.normal(1, noise, 40), costs


def test_known_costs_are_found() -> None:
    counts, seconds, costs = made_up(0)
    found = fit.fit(("a", "b", "c"), counts, seconds)
    np.testing.assert_allclose(found.costs, costs, atol=1e-13)
    assert found.names == ("a", "b", "c")


def test_the_interval_holds_the_cost_and_grows_with_the_noise() -> None:
    widths = []
    for noise in (0.01, 0.1):
        counts, seconds, costs = made_up(noise)
        found = fit.fit(("a", "b", "c"), counts, seconds)
        assert np.all(found.low <= found.costs) and np.all(found.costs <= found.high)
        assert np.all(np.abs(found.costs - costs) < 5 * noise * costs.max())
        widths.append(found.high - found.low)
    assert np.all(widths[1][[0, 2]] > widths[0][[0, 2]])


def test_costs_are_never_negative() -> None:
    random = np.random.default_rng(1)
    counts = random.uniform(1, 2, (30, 2))
    seconds = np.maximum(counts @ np.array([1.0, -0.2]), 0.1)
    assert np.all(fit.non_negative(counts, seconds) >= 0)


def test_a_column_that_another_explains_is_left_out() -> None:
    counts, seconds, _ = made_up(0)
    twice = np.column_stack([counts[:, 0], 2 * counts[:, 0], counts[:, 2], np.zeros(40)])
    assert fit.told_apart(twice, seconds) == [0, 2]
