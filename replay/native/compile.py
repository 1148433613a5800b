"""Native functions -> an image: numba compiles, LLVM emits ELF objects, these are laid out together.

llvmlite is the part of numba that speaks to LLVM. Code is emitted for the *large* code model, in which
whatever has an address is reached through a 64-bit word in the code: the one kind of relocation that is left.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import llvmlite.binding as llvm
import numba
import numpy as np
from numba.core import types
from numba.core.typing import signature
from numba.extending import overload, register_jitable

from replay.native import words
from replay.native.function import all_functions
from replay.native.image import Image, encoded

if TYPE_CHECKING:
    from replay.native.function import Native

SHT_PROGBITS: Final = 1
SHT_SYMTAB: Final = 2
SHT_RELA: Final = 4
SHF_ALLOC: Final = 2
R_X86_64_64: Final = 1
"""Names of elf(5)."""

ALIGNMENT: Final = 64

OPTIONS: Final[dict[str, Any]] = {"error_model": "numpy", "forceinline": True, "_nrt": False}
"""Nothing raises, all is one function, no references are counted."""

ENTRY_OPTIONS: Final[dict[str, Any]] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}

LIBRARY: Final = frozenset({"pread", "memset", "memcpy", "memmove"})
"""What machine code may call: LLVM makes the last three of loops that fill or copy."""

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
        placed = _place(_object(assembly), symbol, len(code))
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
        cpu="generic", opt=3, reloc="static", codemodel="large"
    )
    return machine.emit_object(llvm.parse_assembly(assembly))


def _place(elf: bytes, entry: str, at: int) -> Image:
    """What of an object is code or constants, for a place `at` in an image."""
    table, count = struct.unpack_from("<Q", elf, 0x28)[0], struct.unpack_from("<H", elf, 0x3C)[0]
    # name, type, flags, address, offset, size, link, info, alignment, size of an entry
    sections = [struct.unpack_from("<IIQQQQIIQQ", elf, table + 64 * number) for number in range(count)]
    code, places = bytearray(), dict[int, int]()
    for number, (_, kind, flags, _, offset, size, *_) in enumerate(sections):
        if kind == SHT_PROGBITS and flags & SHF_ALLOC:
            code += bytes(-len(code) % ALIGNMENT)
            places[number] = at + len(code)
            code += elf[offset : offset + size]
    code += bytes(-len(code) % ALIGNMENT)
    symbols = next(_symbols(elf, sections, section) for section in sections if section[1] == SHT_SYMTAB)
    # numba's reference counting stands beside functions that take arrays; ours belong to the caller, who
    # counts them, so that it never comes to its end
    counting = [symbol[1:] for symbol in symbols if symbol[0].startswith("NRT_") and symbol[1] in places]
    fixups = []
    for _, kind, _, _, offset, size, _, info, *_ in sections:
        if kind != SHT_RELA or info not in places:
            continue
        for place in range(offset, offset + size, 24):
            where, what, addend = struct.unpack_from("<QQq", elf, place)
            name, section, value, _ = symbols[what >> 32]
            if section in places:
                name, addend = "", addend + places[section] + value
            elif any(of == info and 0 <= where - begin < length for of, begin, length in counting):
                continue
            elif name not in LIBRARY:
                raise NotImplementedError(f"{entry} needs {name}")
            if what & 0xFFFFFFFF != R_X86_64_64:
                raise NotImplementedError(f"{entry} has a relocation of type {what & 0xFFFFFFFF}")
            fixups.append((places[info] + where, name, addend))
    entries = {name: places[section] + value for name, section, value, _ in symbols if name == entry}
    return Image(bytes(code), entries, fixups)


def _symbols(elf: bytes, sections: list[Any], table: Any) -> list[tuple[str, int, int, int]]:
    """(name, section, value, size) of each symbol."""
    strings = sections[table[6]]
    text = elf[strings[4] : strings[4] + strings[5]]
    found = []
    for place in range(table[4], table[4] + table[5], 24):
        name, _, _, section, value, size = struct.unpack_from("<IBBHQQ", elf, place)
        found.append((text[name : text.index(b"\0", name)].decode(), section, value, size))
    return found
