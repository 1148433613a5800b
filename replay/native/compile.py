"""Native functions -> an image: numba compiles, LLVM emits ELF objects, these are laid out together.

llvmlite is the part of numba that speaks to LLVM.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import llvmlite.binding as llvm
import numba
import numpy as np
from numba.core import types
from numba.core.typing import signature
from numba.extending import overload, register_jitable

from replay.native import elf, words
from replay.native.function import all_functions
from replay.native.image import Image, encoded

if TYPE_CHECKING:
    from replay.native.function import Native

OPTIONS: Final[dict[str, Any]] = {"error_model": "numpy", "forceinline": True, "_nrt": False}
"""Nothing raises, all is one function, no references are counted."""

ENTRY_OPTIONS: Final[dict[str, Any]] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}

_PREAD: Final = signature(types.int64, types.int32, types.uint64, types.uint64, types.int64)
_pread: Any = types.ExternalFunction("pread", _PREAD)


@overload(words.pread)
def _overloaded_pread(fd: Any, out: Any, at: Any, count: Any, first: Any) -> Any:
    def machine(fd: Any, out: Any, at: Any, count: Any, first: Any) -> Any:
        size = _pread(np.int32(fd), np.uint64(out.ctypes.data + at * 8), np.uint64(count * 8), first * 8)
        return size >> 3  # -1 stays -1

    return machine


def main() -> None:
    """Print the image; numba must have been told to compile for the processor called generic."""
    sys.stdout.buffer.write(encoded(compiled(*all_functions())))


def compiled(functions: Mapping[str, Native], parts: list[Callable[..., Any]]) -> Image:
    """Compile functions, and the parts that they call, for any processor of this architecture."""
    for part in parts:
        register_jitable(**OPTIONS)(part)
    code, entries, fixups = bytearray(), {}, []
    for name, function in functions.items():
        symbol, assembly = _compile(function)
        placed = elf.placed(_object(assembly), symbol, len(code))
        entries[name] = placed.entries[symbol]
        fixups += placed.fixups
        code += placed.code
    return Image(bytes(code), entries, fixups)


def in_process(
    functions: Mapping[str, Native], parts: list[Callable[..., Any]]
) -> dict[str, Callable[..., int]]:
    """The functions as numba has them, for this process only."""
    for part in parts:
        register_jitable(**OPTIONS)(part)
    return {name: numba.njit(nogil=True, **OPTIONS)(function.python) for name, function in functions.items()}


def _compile(function: Native) -> tuple[str, str]:
    """The name of the machine function, and its module in LLVM's language.

    It takes a pointer for its result, one for an exception, and the words of its arguments; see numba's
    calling convention.
    """
    names, values, kinds = [], [], []
    for number, shape in enumerate(function.shapes):
        sizes = [f"s{number}_{axis}" for axis in range(shape[1] if shape else 0)]
        names += [f"a{number}", *sizes]
        values.append(f"carray(a{number}, ({', '.join(sizes)},))" if shape else f"a{number}")
        kinds += [types.CPointer(numba.from_dtype(shape[0])) if shape else types.int64]
        kinds += [types.int64] * len(sizes)
    source = f"def entry({', '.join(names)}):\n    return target({', '.join(values)})\n"
    space = {"carray": numba.carray, "target": numba.njit(**OPTIONS)(function.python)}
    exec(source, space)
    entry: Any = numba.njit(**ENTRY_OPTIONS)(space["entry"])
    entry.compile(signature(types.int64, *kinds))
    return entry.overloads[tuple(kinds)].fndesc.llvm_func_name, entry.inspect_llvm(tuple(kinds))


def _object(assembly: str) -> bytes:
    """An ELF object of a module."""
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu="generic", opt=3, reloc="static", codemodel=elf.CODE_MODELS[os.uname().machine]
    )
    return machine.emit_object(llvm.parse_assembly(assembly))
