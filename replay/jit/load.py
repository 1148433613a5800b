# SPDX-License-Identifier: Apache-2.0
"""Objects -> machine code in memory: LLVM links them."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from typing import Any, Final

import llvmlite.binding as llvm

from replay.errors import ReplayError

_engines: Final[list[Any]] = []
"""They own the code, which stays until the process ends."""


def addresses(objects: Iterable[bytes], names: Iterable[str]) -> dict[str, int]:
    """Load objects of `build`; the addresses of the functions of these names.

    Raises `ReplayError` if this process may not make memory executable.
    """
    _check_executable()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(codemodel="jitdefault", jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    for each in objects:
        engine.add_object_file(llvm.ObjectFileRef.from_data(each))
    engine.finalize_object()
    _engines.append(engine)
    return {name: engine.get_function_address(name) for name in names}


def _check_executable() -> None:
    """LLVM does not notice that memory stays without execution rights, as under MemoryDenyWriteExecute."""
    memory = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    libc = ctypes.CDLL(None, use_errno=True)
    page = ctypes.c_char.from_buffer(memory)
    address, size = ctypes.c_void_p(ctypes.addressof(page)), ctypes.c_size_t(mmap.PAGESIZE)
    refused = libc.mprotect(address, size, mmap.PROT_READ | mmap.PROT_EXEC)
    cause = os.strerror(ctypes.get_errno())
    del page
    memory.close()
    if refused:
        raise ReplayError(
            f"no memory can be made executable for compiled code: {cause}: allow it (execmem, "
            "MemoryDenyWriteExecute), or set NUMBA_DISABLE_JIT=1 to do without, slowly"
        )
