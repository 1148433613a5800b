"""Machine code on its way to and from a file: the code, where its functions begin, what must be patched."""

from __future__ import annotations

import ctypes
import marshal
import mmap
import os
import stat
import struct
from pathlib import Path
from typing import Final, NamedTuple

from replay.errors import ReplayError
from replay.support.atomic_file import atomic_file

MAGIC: Final = "replay image 1\n"

MACHINES: Final = ("x86_64", "aarch64")
"""Whose machine code can be put into memory here (see `elf`): what is left to patch in it are whole words."""

COHERENT: Final = ("x86_64",)
"""Those of them that execute at once what was written."""


class Image(NamedTuple):
    """code: to be put anywhere in memory. entries: where each function begins in it.

    fixups: (offset, symbol, addend) of 64-bit words that become an address: of a symbol of the C library, or,
    where the symbol is empty, of the code itself; plus `addend`.
    """

    code: bytes
    entries: dict[str, int]
    fixups: list[tuple[int, str, int]]


def cache() -> Path:
    """The user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "replay"


def read(path: Path, key: str) -> Image | None:
    """The image with this key; None if the file has another, or if others could have written it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    with os.fdopen(fd, "rb") as file:
        owner = os.fstat(fd)
        if owner.st_uid != os.geteuid() or owner.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return None
        content = file.read()
    start = f"{MAGIC}{key}\0".encode()
    if not content.startswith(start):
        return None
    try:
        return decoded(content[len(start) :])
    except (EOFError, TypeError, ValueError):  # it was cut
        return None


def write(path: Path, key: str, image: Image) -> bool:
    """Keep an image; False if the folder cannot be written to."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path, force=True) as file:
            file.write(f"{MAGIC}{key}\0".encode() + encoded(image))
    except (OSError, ReplayError):
        return False
    return True


def encoded(image: Image) -> bytes:
    """An image as bytes."""
    return marshal.dumps(tuple(image))


def decoded(content: bytes) -> Image:
    """The image that was `encoded`."""
    return Image(*marshal.loads(content))


def load(image: Image) -> dict[str, int]:
    """Put the code into memory; the address of each function. It stays there until the process ends."""
    memory = mmap.mmap(
        -1, len(image.code), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_WRITE
    )
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    memory[:] = image.code
    for offset, symbol, addend in image.fixups:
        target = ctypes.cast(getattr(libc, symbol), ctypes.c_void_p).value if symbol else base
        struct.pack_into("=Q", memory, offset, (target or 0) + addend)
    if libc.mprotect(ctypes.c_void_p(base), ctypes.c_size_t(len(memory)), mmap.PROT_READ | mmap.PROT_EXEC):
        cause = os.strerror(ctypes.get_errno())
        raise ReplayError(f"no memory for machine code: {cause}: allow it, or set NUMBA_DISABLE_JIT=1")
    if os.uname().machine not in COHERENT:
        # of the compiler's library, which comes with the C library
        clear = ctypes.CDLL("libgcc_s.so.1").__clear_cache
        clear(ctypes.c_void_p(base), ctypes.c_void_p(base + len(memory)))
    _loaded.append(memory)
    return {name: base + offset for name, offset in image.entries.items()}


_loaded: Final[list[mmap.mmap]] = []
