# SPDX-License-Identifier: Apache-2.0
"""A module that calls a compiled function with an array in another order than it takes, for the tests."""

from __future__ import annotations

from replay.jit.compiled import I32, I64, U8, I64s, compiled
from tests.jit.sums import weighted


@compiled
def turned(values: I64, table: I64s, small: I32, bits: U8, out: I64) -> int:
    """`weighted` of the columns."""
    return weighted(values, table.T, small, bits, out, 1)
