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

from replay.errors import ReplayError
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
    "replay.capture.cut",
    "replay.capture.rss",
)
"""The modules that have native functions; they are compiled together."""

SOURCES: Final = ("capture", "native", "trace")
"""Folders of replay that these functions and their constants come from."""

_functions: dict[str, Native] = {}
_parts: list[Callable[..., Any]] = []


class Native:
    """A native function; called like the Python function it is made of. run: does the work, once ready."""

    def __init__(self, python: Callable[..., int]) -> None:
        self.python = python
        self.name = f"{python.__module__}.{python.__qualname__}"
        kinds = [kind for name, kind in python.__annotations__.items() if name != "return"]
        # of each argument: dtype and dimensions of an array; None: an integer
        self.shapes = [None if kind == "int" else DTYPES[kind] for kind in kinds]
        self.run: Callable[..., int] | None = None

    def __call__(self, *arguments: Any) -> int:
        if self.run is None:
            prepare()
        assert self.run
        # without JIT the result may be an integer of NumPy's
        return int(self.run(*arguments))

    def machine_code(self, address: int) -> Callable[..., int]:
        """The machine code at an address as a function of Python, which checks what it is given."""
        count = sum(1 if shape is None else 1 + shape[1] for shape in self.shapes)
        words = [ctypes.c_int64] * count
        entry = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, *words)(address)

        def run(*arguments: Any) -> int:
            words: list[int] = []
            for value, shape in zip(arguments, self.shapes, strict=True):
                if shape is None:
                    words.append(value)
                elif value.dtype == shape[0] and value.ndim == shape[1] and value.flags.c_contiguous:
                    words.append(value.ctypes.data)
                    words.extend(value.shape)
                else:  # which the machine code would not notice
                    raise TypeError(
                        f"{self.name}: not a {shape[1]}-d array of {shape[0]} in C order: {value!r}"
                    )
            result = ctypes.c_int64()
            if entry(ctypes.byref(result), None, *words):
                raise RuntimeError(f"{self.name} failed")
            return result.value

        return run


def native(function: Callable[..., int]) -> Native:
    """Mark a function."""
    return _functions.setdefault(f"{function.__module__}.{function.__qualname__}", Native(function))


def part(function: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a function that native functions call; it stays what it is."""
    _parts.append(function)
    return function


def prepare() -> None:
    """Make the native functions ready: load their image; have it compiled if there is none.

    Raises `ReplayError` if that fails.
    """
    if any(function.run for function in _functions.values()):
        return
    all_functions()
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        ready = {name: function.python for name, function in _functions.items()}
    elif os.uname().machine in image.MACHINES:
        addresses = image.load(_image())
        ready = {name: function.machine_code(addresses[name]) for name, function in _functions.items()}
    else:
        from replay.native.compile import in_process

        _say(f"compiling, as for every command on {os.uname().machine}: a few seconds")
        ready = in_process(_functions, _parts)
    for name, run in ready.items():
        _functions[name].run = run


def _image() -> image.Image:
    """The image, from the cache or just made."""
    key = _key()
    path = image.cache() / f"{zlib.crc32(key.encode()):08x}.image"
    found = image.read(path, key)
    if found is None:
        _say("compiling the loops over pages, once: a few seconds")
        found = _compiled()
        if not image.write(path, key, found):
            _say(
                f"cannot keep what was compiled in {path.parent}: set XDG_CACHE_HOME to a folder of your own"
            )
    return found


def _compiled() -> image.Image:
    """The image, made by another process: numba would stay in this one, and be set up for any processor."""
    import subprocess

    root = Path(__file__).parent.parent.parent
    program = (
        f"import sys; sys.path.insert(0, {str(root)!r}); from replay.native import compile; compile.main()"
    )
    environment = {**os.environ, "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=False)
    if done.returncode:
        cause = (done.stderr.decode(errors="replace").strip() or f"status {done.returncode}").splitlines()[-1]
        raise ReplayError(
            f"numba cannot compile the loops over pages ({cause}): install replay again, "
            "or set NUMBA_DISABLE_JIT=1 to do without, slowly"
        )
    return image.decoded(done.stdout)


def all_functions() -> tuple[dict[str, Native], list[Callable[..., Any]]]:
    """What there is to compile: native functions by name, and the parts that they call."""
    for module in MODULES:
        importlib.import_module(module)
    return _functions, _parts


def _say(line: str) -> None:
    print(f"replay: {line}", file=sys.stderr)


def _key() -> str:
    """What an image depends on: the sources, by what is in them, and Python's format of objects."""
    parts = [sys.version, os.uname().machine]
    for folder in SOURCES:
        for file in sorted((Path(__file__).parent.parent / folder).glob("*.py")):
            content = file.read_bytes()
            parts.append(f"{file.name} {len(content)} {zlib.crc32(content)} {zlib.adler32(content)}")
    return "\n".join(parts)
