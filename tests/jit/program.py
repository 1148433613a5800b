# SPDX-License-Identifier: Apache-2.0
"""Calls compiled functions in a process of its own; prints results, and whether numba was imported."""

from __future__ import annotations

import sys

import numpy as np

from tests.jit import sums


def main() -> None:
    """Print the figures."""
    table = np.arange(6).reshape(2, 3)
    out = np.zeros(2, np.int64)
    rest = sums.weighted(
        np.array([-7, 8]), table, np.array([2, 0], np.int32), np.array([1, 255], np.uint8), out, 100
    )
    print(rest, out.tolist(), "numba" in sys.modules)


main()
