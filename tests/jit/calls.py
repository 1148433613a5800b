# SPDX-License-Identifier: Apache-2.0
"""A module whose compiled function calls one of another module, for the tests."""

from __future__ import annotations

from replay.jit.compiled import I32, I64, U8, I64s, compiled
from tests.jit.sums import weighted


@compiled
def weighted_rows(values: I64, table: I64s, small: I32, bits: U8, out: I64, first: int) -> int:
    """`weighted` of the rows from `first` on, twice."""
    rest = weighted(values, table[first:], small, bits, out[first:], 1)
    return rest + weighted(values, table[first:], small, bits, out[first:], 2)
