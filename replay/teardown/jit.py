"""How the machine is compiled: each function once, for the types that its annotations name.

Left to itself numba compiles a version for every literal argument: twice the time at the first start. A
module decorates its functions with `jit` and ends with `compile_all(__name__)`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import typing
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numba
import numpy as np
import numpy.typing as npt

from replay.native.image import cache
from replay.teardown.state import Rules

Table = typing.Annotated[npt.NDArray[np.int64], "2d"]
"""int64, two dimensions, C order."""
Counts = typing.Annotated[npt.NDArray[np.int64], "1d"]
"""int64, one dimension."""

_functions: dict[str, list[Any]] = {}


def _kept() -> bool:
    """Whether compiled code is kept: in a folder of this very version, for numba's own check sees one file.

    Says what takes seconds, and what to do where nothing can be kept.
    """
    if numba.config.DISABLE_JIT or numba.config.CACHE_DIR:  # type: ignore[attr-defined]
        return True
    key = zlib.crc32(b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py"))))
    folder = cache() / f"machine-{key:08x}"
    if not folder.is_dir():
        print("replay: compiling the replay machine, once: a few seconds", file=sys.stderr)
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    # code that others could have written is not run
    if not os.access(folder, os.W_OK) or folder.stat().st_uid != os.geteuid():
        remedy = "set XDG_CACHE_HOME to a folder of your own"
        print(f"replay: cannot keep what is compiled in {cache()}: {remedy}", file=sys.stderr)
        return False
    numba.config.CACHE_DIR = str(folder)  # type: ignore[attr-defined]
    return True


_KEPT: Final = _kept()


def jit(function: Callable[..., Any]) -> Any:
    """numba.njit, kept on disk, without the GIL."""
    compiled = numba.njit(nogil=True, cache=_KEPT)(function)
    _functions.setdefault(function.__module__, []).append(compiled)
    return compiled


def compile_all(module: str) -> None:
    """Compile the functions of a module, last first: they call only functions that stand below them."""
    if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
        return
    for function in reversed(_functions.pop(module)):
        hints = typing.get_type_hints(function.py_func, include_extras=True)
        result = _numba_type(hints.pop("return"))
        function.compile(result(*(_numba_type(hint) for hint in hints.values())))
        function.disable_compile()


def _numba_type(hint: Any) -> Any:
    known = {
        int: numba.int64,
        bool: numba.boolean,
        type(None): numba.none,
        Table: numba.int64[:, ::1],
        Counts: numba.int64[::1],
        Rules: numba.typeof(Rules(0, 0, False, False, 0, 0, 0, 0, 0)),
    }
    if typing.get_origin(hint) is tuple:
        return numba.types.Tuple([_numba_type(part) for part in typing.get_args(hint)])
    return known[hint]
