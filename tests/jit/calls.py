# SPDX-License-Identifier: Apache-2.0
"""A module whose compiled function calls one of another module, for the tests."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import numpy.typing as npt

from replay.jit.compiled import I32, I64, U8, Array, I64s, compiled
from tests.jit.sums import weighted

Pairs = Annotated[npt.NDArray[np.int64], Array("int64", 2, 2)]


@compiled
def products(pairs: Pairs) -> int:
    """The sum of the products of some pairs."""
    total = 0
    for n in range(len(pairs)):
        total += pairs[n, 0] * pairs[n, 1]
    return total


@compiled
def weighted_rows(values: I64, table: I64s, small: I32, bits: U8, out: I64, first: int) -> int:
    """`weighted` of the rows from `first` on, twice."""
    rest = weighted(values, table[first:], small, bits, out[first:], 1)
    return rest + weighted(values, table[first:], small, bits, out[first:], 2)
