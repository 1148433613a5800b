# SPDX-License-Identifier: Apache-2.0
"""NumPy at work: large and small arrays, some freed again. Says `ready` and waits until its input ends.

usage: arrays.py [split]

split: parts of the large arrays are given back or protected, so that the kernel has to map what were
whole huge pages page by page.
"""

import ctypes
import sys

import numpy as np

PAGE = 4096
HUGE = 2 << 20
MADV_DONTNEED = 4
PROT_READ = 1

libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, address: int, length: int, argument: int) -> None:
    """madvise() or mprotect() on a part of an array."""
    if getattr(libc, name)(ctypes.c_void_p(address), ctypes.c_size_t(length), argument):
        raise OSError(ctypes.get_errno(), name)


def split(array: np.ndarray) -> None:
    """Of three huge pages in a row: one loses 64 kB, one gets a read-only page, one stays whole."""
    begin = -(-array.ctypes.data // HUGE) * HUGE
    end = (array.ctypes.data + array.nbytes) // HUGE * HUGE
    for number, address in enumerate(range(begin, end, HUGE)):
        if number % 3 == 0:
            call("madvise", address + HUGE // 2, 16 * PAGE, MADV_DONTNEED)
        elif number % 3 == 1:
            call("mprotect", address + HUGE // 4, PAGE, PROT_READ)


random = np.random.default_rng(1)

# each a mapping of its own, which free() gives back to the kernel
large = [random.random((256, 8192)) for _ in range(12)]
large.append(np.sum(large, axis=0))
del large[1::3]

# below malloc's mmap threshold: the heap keeps the holes
small = [np.arange(n, dtype=np.float64) for n in random.integers(500, 12_000, 2000)]
del small[::2]

# calloc: only what is touched is there
sparse = np.zeros((4096, 2048))
sparse[::7, :600] = 1

if "split" in sys.argv:
    for array in large:
        split(array)

print("ready", flush=True)
sys.stdin.read()
