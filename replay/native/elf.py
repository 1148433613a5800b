"""An ELF object of machine code -> an image. No linker is needed for the little that is left to do.

x86-64: code of the *large* code model reaches whatever has an address through a 64-bit word. AArch64: code of
the *small* one reaches what is near, as all of an image is; the C library is not, so that calls of it go to
stubs in the image, which jump on.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from replay.native.image import Image

SHT_PROGBITS: Final = 1
SHT_SYMTAB: Final = 2
SHT_RELA: Final = 4
SHF_ALLOC: Final = 2
EM_X86_64: Final = 62
EM_AARCH64: Final = 183
"""Names of elf(5)."""

CODE_MODELS: Final = {"x86_64": "large", "aarch64": "small"}
"""By the names of `uname -m`."""

R_X86_64_64: Final = 1
R_AARCH64_ABS64: Final = 257
R_AARCH64_ADR_PREL_PG_HI21: Final = 275
R_AARCH64_JUMP26: Final = 282
R_AARCH64_CALL26: Final = 283
"""Relocations of the ELF supplements of the processors."""

LOW_12_BITS: Final = {277: 0, 278: 0, 284: 1, 285: 2, 286: 3, 299: 4}
"""R_AARCH64_ADD_ABS_LO12_NC, R_AARCH64_LDST{8,16,32,64,128}_ABS_LO12_NC: bits that the instruction drops."""

WORDS: Final = {EM_X86_64: R_X86_64_64, EM_AARCH64: R_AARCH64_ABS64}

STUB: Final = struct.pack("<IIQ", 0x58000050, 0xD61F0200, 0)
"""AArch64: ldr x16, .+8; br x16; the address."""

LIBRARY: Final = frozenset({"pread", "memset", "memcpy", "memmove"})
"""What machine code may call: LLVM makes the last three of loops that fill or copy."""

UNWINDING: Final = ".eh_frame"
"""For who steps through the code, which nothing is told of."""

ALIGNMENT: Final = 64


class Section(NamedTuple):
    """What is used of a section header; `link` and `info` are numbers of other sections."""

    name: str
    kind: int
    flags: int
    offset: int
    size: int
    link: int
    info: int


class Symbol(NamedTuple):
    """A symbol: `value` is its place in the section."""

    name: str
    section: int
    value: int
    size: int


class Relocation(NamedTuple):
    """What is to be patched: at `where` in section `section`, for symbol number `symbol`."""

    section: int
    where: int
    symbol: int
    kind: int
    addend: int


def placed(elf: bytes, entry: str, at: int) -> Image:
    """The code and constants of an object, of which function `entry` is wanted, for a place `at` in an image.

    Raises `NotImplementedError` for what needs a linker.
    """
    (machine,) = struct.unpack_from("<H", elf, 0x12)
    sections = _sections(elf)
    symbols = next(_symbols(elf, sections, section) for section in sections if section.kind == SHT_SYMTAB)
    code, places = bytearray(), dict[int, int]()
    for number, section in enumerate(sections):
        if section.kind == SHT_PROGBITS and section.flags & SHF_ALLOC and section.name != UNWINDING:
            places[number] = len(code)
            code += _content(elf, section)
            code += bytes(-len(code) % ALIGNMENT)
    fixups: list[tuple[int, str, int]] = []
    stubs: dict[str, int] = {}
    for relocation in _relocations(elf, sections):
        symbol = symbols[relocation.symbol]
        if relocation.section not in places or _counts_references(relocation, symbols):
            continue
        if symbol.section in places:
            name, target = "", places[symbol.section] + symbol.value + relocation.addend
        elif symbol.name in LIBRARY:
            name, target = symbol.name, relocation.addend
        else:
            raise NotImplementedError(f"{entry} needs {symbol.name}")
        place = places[relocation.section] + relocation.where
        if relocation.kind == WORDS[machine]:
            fixups.append((at + place, name, target if name else at + target))
            continue
        if machine != EM_AARCH64:
            raise NotImplementedError(f"{entry} has a relocation of type {relocation.kind}")
        if name and name not in stubs:
            stubs[name] = len(code)
            code += STUB
            fixups.append((at + len(code) - 8, name, 0))
        (word,) = struct.unpack_from("<I", code, place)
        word = _aimed(word, relocation.kind, at + place, at + (stubs[name] if name else target))
        struct.pack_into("<I", code, place, word)
    code += bytes(-len(code) % ALIGNMENT)
    begin = next(symbol for symbol in symbols if symbol.name == entry)
    return Image(bytes(code), {entry: at + places[begin.section] + begin.value}, fixups)


def _counts_references(relocation: Relocation, symbols: list[Symbol]) -> bool:
    """Whether it lies in numba's reference counting, which stands beside functions that take arrays.

    Ours belong to the caller, who counts them, so that it never comes to its end.
    """
    return any(
        symbol.name.startswith("NRT_")
        and symbol.section == relocation.section
        and 0 <= relocation.where - symbol.value < symbol.size
        for symbol in symbols
    )


def _aimed(word: int, kind: int, place: int, target: int) -> int:
    """The AArch64 instruction at `place` of an image, as it names `target`; an image lies on whole pages."""
    if kind in (R_AARCH64_JUMP26, R_AARCH64_CALL26):
        distance = target - place >> 2
        if not -1 << 25 <= distance < 1 << 25:
            raise NotImplementedError("a branch is too long")
        return word | distance & (1 << 26) - 1
    if kind == R_AARCH64_ADR_PREL_PG_HI21:
        pages = (target >> 12) - (place >> 12)
        return word | (pages & 3) << 29 | (pages >> 2 & (1 << 19) - 1) << 5
    if kind in LOW_12_BITS:
        return word | (target & (1 << 12) - 1) >> LOW_12_BITS[kind] << 10
    raise NotImplementedError(f"a relocation of type {kind}")


def _sections(elf: bytes) -> list[Section]:
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    count, names = struct.unpack_from("<HH", elf, 0x3C)
    # name, type, flags, address, offset, size, link, info, alignment, size of an entry
    headers = [struct.unpack_from("<IIQQQQIIQQ", elf, table + 64 * number) for number in range(count)]
    return [
        Section(_text(elf, headers[names][4] + name), kind, flags, offset, size, link, info)
        for name, kind, flags, _, offset, size, link, info, *_ in headers
    ]


def _relocations(elf: bytes, sections: list[Section]) -> Iterator[Relocation]:
    for section in sections:
        if section.kind == SHT_RELA:
            for where, what, addend in struct.iter_unpack("<QQq", _content(elf, section)):
                yield Relocation(section.info, where, what >> 32, what & 0xFFFFFFFF, addend)


def _symbols(elf: bytes, sections: list[Section], table: Section) -> list[Symbol]:
    strings = sections[table.link].offset
    return [
        Symbol(_text(elf, strings + name), section, value, size)
        for name, _, _, section, value, size in struct.iter_unpack("<IBBHQQ", _content(elf, table))
    ]


def _content(elf: bytes, section: Section) -> bytes:
    return elf[section.offset : section.offset + section.size]


def _text(elf: bytes, at: int) -> str:
    return elf[at : elf.index(b"\0", at)].decode()
