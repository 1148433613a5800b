# SPDX-License-Identifier: Apache-2.0
"""A module with compiled functions, for the tests: small, so that it is compiled quickly."""

from __future__ import annotations

from replay.jit.compiled import I32, I64, U8, I64s, compiled, inline, seldom

FACTOR = 3


@inline
def times(value: int) -> int:
    """FACTOR times a value."""
    return value * FACTOR


@seldom
def quotient(value: int, divisor: int) -> int:
    """The value, divided by the divisor if that is not 0."""
    return value // max(divisor, 1)


@compiled
def weighted(values: I64, table: I64s, small: I32, bits: U8, out: I64, more: int) -> int:
    """Each row's sum, times FACTOR and more, into `out`; returns the sum of the other arguments."""
    for row in range(table.shape[0]):
        total = 0
        for column in range(table.shape[1]):
            total += times(table[row, column])
        out[row] = total + more
    rest = 0
    for at in range(len(values)):
        rest += quotient(values[at], small[at]) - bits[at]
    return rest


@compiled
def spin(rounds: int, out: I64) -> int:
    """Random numbers, one after the other, which no optimiser can skip."""
    for _ in range(rounds):
        out[0] = out[0] * 6364136223846793005 + 1442695040888963407
    return out[0]
