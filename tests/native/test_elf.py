"""Objects of both kinds of machine become images: what they call is reached, wherever the image lies."""

from __future__ import annotations

import struct

import llvmlite.binding as llvm
import pytest

from replay.native import elf
from replay.native.image import Image

TABLE = [3, 1, 4, 1, 5]
MODULE = f"""
@table = internal constant [5 x i64] [{", ".join(f"i64 {value}" for value in TABLE)}]
declare i64 @pread(i32, ptr, i64, i64)
declare ptr @memset(ptr, i32, i64)
define i64 @entry(i32 %fd, ptr %out, i64 %size) {{
  %cleared = call ptr @memset(ptr %out, i32 0, i64 %size)
  %one = call i64 @pread(i32 %fd, ptr %out, i64 %size, i64 0)
  %at = getelementptr [5 x i64], ptr @table, i64 0, i64 %one
  %value = load volatile i64, ptr %at
  %two = call i64 @pread(i32 %fd, ptr %out, i64 %size, i64 %value)
  ret i64 %two
}}
"""

X86_64 = "x86_64-unknown-linux-gnu"
AARCH64 = "aarch64-unknown-linux-gnu"

AT = 1 << 12


def object_of(module: str, triple: str) -> bytes:
    """The ELF object that LLVM makes of a module for a machine, be it this one or not."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    model = elf.CODE_MODELS[triple.partition("-")[0]]
    machine = llvm.Target.from_triple(triple).create_target_machine(
        cpu="generic", opt=3, reloc="static", codemodel=model
    )
    return machine.emit_object(llvm.parse_assembly(f'target triple = "{triple}"\n{module}'))


def image_of(triple: str) -> Image:
    return elf.placed(object_of(MODULE, triple), "entry", AT)


def table_at(image: Image, place: int) -> list[int]:
    return list(struct.unpack_from(f"<{len(TABLE)}Q", image.code, place - AT))


def test_x86_64_reaches_all_through_words() -> None:
    image = image_of(X86_64)
    assert {symbol for _, symbol, _ in image.fixups} == {"", "memset", "pread"}
    for place, symbol, addend in image.fixups:
        # movabs: a REX prefix and the register before the word
        assert image.code[place - AT - 2] & 0xF8 == 0x48
        assert addend == 0 if symbol else table_at(image, addend) == TABLE


def test_aarch64_calls_through_stubs() -> None:
    image = image_of(AARCH64)
    stubs = {place - 8: symbol for place, symbol, _ in image.fixups}
    assert sorted(stubs.values()) == ["memset", "pread"]
    assert all(image.code[stub - AT :].startswith(elf.STUB[:8]) for stub in stubs)
    called, tables, page = [], [], 0
    for place in range(AT, min(stubs), 4):
        (word,) = struct.unpack_from("<I", image.code, place - AT)
        if word >> 26 in (0b100101, 0b000101):  # bl, and b: the last call is a jump
            distance = (word & (1 << 26) - 1) - ((word >> 25 & 1) << 26)
            called.append(stubs[place + 4 * distance])
        elif word >> 24 & 0x9F == 0x90:  # adrp
            page = (place >> 12) + ((word >> 5 & (1 << 19) - 1) << 2 | word >> 29 & 3) << 12
        elif page and word >> 22 == 0x244:  # add of an immediate
            tables.append(table_at(image, page + (word >> 10 & (1 << 12) - 1)))
            page = 0
    assert called == ["memset", "pread", "pread"]
    assert tables == [TABLE]


@pytest.mark.parametrize("triple", [X86_64, AARCH64])
def test_images_follow_one_another(triple: str) -> None:
    """A page further on, the same code with the same fixups, moved."""
    content = object_of(MODULE, triple)
    here, there = elf.placed(content, "entry", 0), elf.placed(content, "entry", AT)
    assert here.code == there.code and not len(here.code) % elf.ALIGNMENT
    assert there.entries == {"entry": here.entries["entry"] + AT}
    assert there.fixups == [
        (place + AT, symbol, addend if symbol else addend + AT) for place, symbol, addend in here.fixups
    ]


@pytest.mark.parametrize("triple", [X86_64, AARCH64])
def test_what_is_not_in_the_library_is_refused(triple: str) -> None:
    with pytest.raises(NotImplementedError, match="entry needs printf"):
        elf.placed(object_of(MODULE.replace("@memset", "@printf"), triple), "entry", 0)


def test_aarch64_instructions_name_places_before_and_behind_them() -> None:
    assert elf._aimed(0x94000000, elf.R_AARCH64_CALL26, 0, (1 << 27) - 4) == 0x95FFFFFF
    assert elf._aimed(0x94000000, elf.R_AARCH64_CALL26, 8, 4) == 0x97FFFFFF
    assert elf._aimed(0x90000000, elf.R_AARCH64_ADR_PREL_PG_HI21, 0x5004, 0x4008) == 0xF0FFFFE0
    assert elf._aimed(0x3DC00000, 299, 0, 0x1230) == 0x3DC08C00  # ldr q0, [x0, #0x230]
    with pytest.raises(NotImplementedError, match="too long"):
        elf._aimed(0x94000000, elf.R_AARCH64_CALL26, 0, 1 << 27)
    with pytest.raises(NotImplementedError, match="type 264"):
        elf._aimed(0, 264, 0, 0)
