"""Functions that run as machine code: how they are marked, called, and made ready.

A native function takes contiguous NumPy arrays and integers, returns an integer, allocates nothing and raises
nothing; its annotations are the names in `DTYPES`, or `int`. All arithmetic is that of int64. Of a process
that runs without JIT (NUMBA_DISABLE_JIT=1) it is an ordinary Python function.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from replay.native import image

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
I64s = npt.NDArray[np.int64]
I32s = npt.NDArray[np.int32]
U8 = npt.NDArray[np.uint8]
U8s = npt.NDArray[np.uint8]

DTYPES: Final = {
    name: (np.dtype(kind), dimensions)
    for name, kind, dimensions in (
        ("I64", np.int64, 1),
        ("I32", np.int32, 1),
        ("I64s", np.int64, 2),
        ("I32s", np.int32, 2),
        ("U8", np.uint8, 1),
        ("U8s", np.uint8, 2),
    )
}
"""Name of an annotation -> dtype and dimensions of an array in C order."""

MODULES: Final = (
    "replay.native.words",
    "replay.capture.runs",
    "replay.capture.folios",
    "replay.capture.extents",
    "replay.capture.reconcile",
)
"""The modules that have native functions; they are compiled together."""

SOURCES: Final = ("capture", "native", "trace")
"""Folders of replay that these functions and their constants come from."""

_functions: dict[str, Native] = {}
_parts: list[Callable[..., Any]] = []


class Native:
    """A native function; called like the Python function it is made of."""

    def __init__(self, python: Callable[..., int]) -> None:
        self.python = python
        self.name = f"{python.__module__}.{python.__qualname__}"
        kinds = [kind for name, kind in python.__annotations__.items() if name != "return"]
        # of each argument: dtype and dimensions; None: an integer
        self.shapes = [
            None if kind == "int" else (np.dtype(DTYPES[kind][0]), DTYPES[kind][1]) for kind in kinds
        ]
        self.entry: Callable[..., int] | None = None

    def __call__(self, *arguments: Any) -> int:
        if self.entry is None:
            if _interpreted():
                return self.python(*arguments)
            prepare()
        words: list[int] = []
        for value, wanted in zip(arguments, self.shapes, strict=True):
            if wanted is None:
                words.append(value)
                continue
            # the machine code would not notice
            if value.dtype != wanted[0] or value.ndim != wanted[1] or not value.flags.c_contiguous:
                raise TypeError(
                    f"{self.name}: not a contiguous {wanted[1]}-d array of {wanted[0]}: {value.dtype}"
                )
            words.append(value.ctypes.data)
            words.extend(value.shape)
        result = ctypes.c_int64()
        assert self.entry
        if self.entry(ctypes.byref(result), None, *words):
            raise RuntimeError(f"{self.name} failed")
        return result.value

    @property
    def words(self) -> int:
        """64-bit arguments of the machine code."""
        return sum(1 if shape is None else 1 + shape[1] for shape in self.shapes)


def native(function: Callable[..., int]) -> Native:
    """Mark a function."""
    return _functions.setdefault(f"{function.__module__}.{function.__qualname__}", Native(function))


def part(function: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a function that native functions call; it stays what it is."""
    _parts.append(function)
    return function


def prepare() -> None:
    """Make the native functions ready: load their image; compile them if there is none for this machine."""
    if _interpreted() or any(function.entry for function in _functions.values()):
        return
    for module in MODULES:
        importlib.import_module(module)
    key = _key()
    path = _cache() / f"{zlib.crc32(key.encode()):08x}.image"
    found = image.read(path, key)
    if found is None:
        from replay.native.compile import compiled

        print("replay: compiling for this processor, once: a few seconds", file=sys.stderr)
        found = compiled(_functions, _parts)
        image.write(path, key, found)
    for name, address in image.load(found).items():
        words = [ctypes.c_int64] * _functions[name].words
        kind = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *words)
        _functions[name].entry = kind(address)


def _interpreted() -> bool:
    return os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0")


def _cache() -> Path:
    """The user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "replay"


def _key() -> str:
    """What an image depends on: the sources, by what is in them, the processor, Python's object format."""
    parts = [sys.version, *os.uname()[4:]]
    for folder in SOURCES:
        for file in sorted((Path(__file__).parent.parent / folder).glob("*.py")):
            content = file.read_bytes()
            parts.append(f"{file.name} {len(content)} {zlib.crc32(content)} {zlib.adler32(content)}")
    with Path("/proc/cpuinfo").open("rb", buffering=0) as cpuinfo:
        first = cpuinfo.read(4096).decode(errors="replace").split("\n\n")[0]
    parts += [line for line in first.splitlines() if not line.startswith(("cpu MHz", "BogoMIPS", "bogomips"))]
    return "\n".join(parts)
