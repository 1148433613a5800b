# SPDX-License-Identifier: Apache-2.0
"""Functions that run as machine code: how they are marked, called, and made ready.

`compiled` marks a function that Python calls, `inline` one that only compiled functions call. A compiled
function can also call `compiled` ones of other modules: each module is an object of its own, so that several
processes can compile them. A compiled function takes integers, NumPy arrays in C order, and NamedTuples of
such arrays, which only Python can pass; it returns an integer, allocates nothing and raises nothing. Its
annotations are `int`, the array types below, and NamedTuples whose fields have these types. While it runs,
other threads can run Python. With NUMBA_DISABLE_JIT=1 the functions run as plain Python.
"""

from __future__ import annotations

import ctypes
import functools
import operator
import os
import sys
import threading
import types
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from replay.jit.pread import pread


class Array(NamedTuple):
    """What an annotation says of an array: the name of its dtype, and its dimensions.

    columns: the size of the last dimension, if it is always the same; machine code then multiplies by it
    instead of by a size that it has to load. 0 if it can be any.
    """

    dtype: str
    ndim: int
    columns: int = 0


class Group(NamedTuple):
    """What an annotation says of a NamedTuple of arrays."""

    kind: type
    arrays: tuple[Array, ...]

    def __repr__(self) -> str:
        names = self.kind._fields  # type: ignore[attr-defined]
        return f"{self.kind.__qualname__}({', '.join(map(repr, zip(names, self.arrays, strict=True)))})"


I64 = Annotated[npt.NDArray[np.int64], Array("int64", 1)]
I64s = Annotated[npt.NDArray[np.int64], Array("int64", 2)]
I64Stack = Annotated[npt.NDArray[np.int64], Array("int64", 3)]
U32 = Annotated[npt.NDArray[np.uint32], Array("uint32", 1)]
I32 = Annotated[npt.NDArray[np.int32], Array("int32", 1)]
I32s = Annotated[npt.NDArray[np.int32], Array("int32", 2)]
U8 = Annotated[npt.NDArray[np.uint8], Array("uint8", 1)]
U8s = Annotated[npt.NDArray[np.uint8], Array("uint8", 2)]

_Function = TypeVar("_Function", bound=Callable[..., Any])

_functions: dict[str, dict[str, Compiled]] = {}
"""Compiled functions by module and name."""
_inline: set[Callable[..., Any]] = {pread}
_seldom: set[Callable[..., Any]] = set()
_lock: Final = threading.RLock()


class Compiled:
    """A compiled function. It takes the same arguments as the Python function that it is made of."""

    def __init__(self, python: Callable[..., int]) -> None:
        functools.update_wrapper(self, python)
        self.python = python
        self.module = python.__module__
        self.name = f"{python.__module__}.{python.__qualname__}"
        self.run: Callable[..., int] | None = None

    def __call__(self, *arguments: Any) -> int:
        if self.run is None:
            prepare(sys.modules[self.module])
        assert self.run
        # plain Python may return an integer of NumPy
        return int(self.run(*arguments))

    @functools.cached_property
    def arguments(self) -> tuple[Array | Group | None, ...]:
        """What each argument is: an array, a group of arrays, or None for an integer."""
        hints = typing.get_type_hints(self.python, include_extras=True)
        hints.pop("return", None)
        return tuple(_argument(hint) for hint in hints.values())


def _argument(hint: Any) -> Array | Group | None:
    """What an annotation says."""
    if hint is int:
        return None
    if isinstance(hint, type):
        fields = typing.get_type_hints(hint, include_extras=True)
        return Group(hint, tuple(field.__metadata__[0] for field in fields.values()))
    found: Array = hint.__metadata__[0]
    return found


def compiled(function: Callable[..., int]) -> Compiled:
    """Mark a function that Python calls."""
    made = Compiled(function)
    _functions.setdefault(made.module, {})[made.name] = made
    return made


def inline(function: _Function) -> _Function:
    """Mark a function that compiled functions call. LLVM puts its code into each of them."""
    _inline.add(function)
    return function


def seldom(function: _Function) -> _Function:
    """Mark a function as `inline` does, but have it called: for what is seldom called, from several places.

    Its code is in the object once, which takes less time to compile.
    """
    _seldom.add(function)
    return inline(function)


def functions_of(module: str) -> dict[str, Compiled]:
    """The compiled functions of a module, by name; the module has been imported."""
    return _functions.get(module, {})


def prepare(*modules: types.ModuleType) -> None:
    """Make the compiled functions of some modules ready: load their code, compile what is not in the cache.

    What is missing is compiled in one go, which takes seconds and is said on standard error. Raises
    `ReplayError` if that fails.
    """
    with _lock:
        names = [
            module.__name__
            for module in modules
            if any(function.run is None for function in functions_of(module.__name__).values())
        ]
        if not names:
            return
        if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
            for name in names:
                for function in functions_of(name).values():
                    function.run = function.python
            return

        from replay.jit import cache, load

        names = with_callees(names)
        functions = [function for name in names for function in functions_of(name).values()]
        objects = cache.objects({name: content(name) for name in names})
        addresses = load.addresses(objects.values(), [function.name for function in functions])
        for function in functions:
            function.run = _machine_code(function, addresses[function.name])


def _machine_code(function: Compiled, address: int) -> Callable[..., int]:
    """The machine code at an address as a Python function, which checks what it is given."""
    arguments = function.arguments
    flat = [each for argument in arguments for each in arrays_of(argument)]
    expected = [None if array is None else (array, np.dtype(array.dtype)) for array in flat]
    entry = ctypes.CFUNCTYPE(ctypes.c_int64, *(kind for array in flat for kind in _c_types(array)))(address)

    def run(*given: Any) -> int:
        if len(given) != len(arguments):
            raise TypeError(f"{function.name} takes {len(arguments)} arguments, not {len(given)}")
        values: list[Any] = []
        for value, argument in zip(given, arguments, strict=True):
            if isinstance(argument, Group):
                if not isinstance(value, argument.kind):
                    raise TypeError(f"{function.name}: no {argument.kind.__name__}: {value!r}")
                values.extend(typing.cast("tuple[Any, ...]", value))
            else:
                values.append(value)
        words: list[int] = []
        for value, wanted in zip(values, expected, strict=True):
            if wanted is None:
                words.append(_int64(value))
                continue
            array, dtype = wanted
            if (
                isinstance(value, np.ndarray)
                and value.dtype == dtype
                and value.ndim == array.ndim
                and value.flags.c_contiguous
                and array.columns in (0, value.shape[-1])
            ):
                words.append(_address(value))
                words.extend(value.shape)
            else:  # machine code would read what is not there
                of = f" with {array.columns} columns" if array.columns else ""
                raise TypeError(
                    f"{function.name}: not a {array.ndim}-d array of {array.dtype} in C order{of}: {value!r}"
                )
        return entry(*words)

    return run


def arrays_of(argument: Array | Group | None) -> tuple[Array | None, ...]:
    """The arrays, or the integer, that an argument is passed as."""
    return argument.arrays if isinstance(argument, Group) else (argument,)


_NOTHING: Final = ctypes.c_char * 0


def _address(array: npt.NDArray[Any]) -> int:
    """Where an array begins; in a fifth of the time that `ndarray.ctypes` takes."""
    try:
        return ctypes.addressof(_NOTHING.from_buffer(array.data))
    except TypeError:
        # it cannot be written to
        return int(array.ctypes.data)


def _int64(value: Any) -> int:
    """An integer of Python or NumPy; ctypes would cut off what does not fit."""
    number = operator.index(value)
    if not -(1 << 63) <= number < 1 << 63:
        raise OverflowError(f"{number} does not fit into int64")
    return number


def _c_types(array: Array | None) -> list[Any]:
    """How an argument is passed: an integer, or the address and the shape of an array."""
    return [ctypes.c_int64] if array is None else [ctypes.c_void_p, *[ctypes.c_int64] * array.ndim]


# -- what a function is made of ------------------------------------------------------------------------------


def content(module: str) -> str:
    """All that the machine code of a module follows from: bytecode and constants, also of inline functions.

    Of compiled functions of other modules that it calls, only how they are called. Raises `TypeError` if a
    function uses a value whose change would go unnoticed.
    """
    lines = [f"{function.name} takes {function.arguments}" for function in functions_of(module).values()]
    for function in _functions_in(module):
        mark = "seldom" if function in _seldom else ""
        lines.append(f"{function.__module__}.{function.__qualname__} {_bytecode(function)} {mark}")
        for name, value in _globals_of(function):
            if isinstance(value, Compiled):
                lines.append(f"{name} calls {value.name} with {value.arguments}")
            elif not _is_inline(value):
                lines.append(f"{name} = {_constant(function, name, value)}")
    return "\n".join(lines)


def callees(module: str) -> list[Compiled]:
    """The compiled functions that the compiled code of a module calls, in the order of their names."""
    found = {
        value.name: value
        for function in _functions_in(module)
        for _, value in _globals_of(function)
        if isinstance(value, Compiled)
    }
    return [found[name] for name in sorted(found)]


def with_callees(modules: Iterable[str]) -> list[str]:
    """Some modules, and those that their compiled functions call into."""
    found = list(dict.fromkeys(modules))
    for module in found:
        found += [each.module for each in callees(module) if each.module not in found]
    return found


def _functions_in(module: str) -> Iterator[Any]:
    """The Python functions that the machine code of a module is made of."""
    wanted: list[Any] = [function.python for function in functions_of(module).values()]
    seen = set(wanted)
    while wanted:
        function = wanted.pop()
        yield function
        new = [value for _, value in _globals_of(function) if _is_inline(value) and value not in seen]
        # the compiled form of pread is in `build`
        wanted += [value for value in dict.fromkeys(new) if value is not pread]
        seen.update(new)


def _globals_of(function: Any) -> list[tuple[str, Any]]:
    """The globals that a function uses, by name."""
    names = function.__code__.co_names
    return [(name, function.__globals__[name]) for name in names if name in function.__globals__]


def _is_inline(value: Any) -> bool:
    return isinstance(value, types.FunctionType) and value in _inline


def _bytecode(function: Any) -> str:
    code = function.__code__
    if function.__defaults__ or any(isinstance(value, types.CodeType) for value in code.co_consts):
        raise TypeError(f"{function.__qualname__}: compiled code has no defaults and no functions inside")
    return repr((code.co_code, code.co_consts, code.co_names, code.co_varnames))


def _constant(function: Callable[..., Any], name: str, value: Any) -> str:
    """A global of a function, as far as the function can depend on it."""
    if isinstance(value, int):
        return repr(int(value))
    if isinstance(value, type) and issubclass(value, tuple):
        return f"{value.__qualname__}{value._fields}"  # type: ignore[attr-defined]
    if value is np:
        return "numpy"
    raise TypeError(f"{function.__qualname__} uses {name}: no integer, NamedTuple or marked function")


def inline_functions() -> frozenset[Callable[..., Any]]:
    """All functions that are marked `inline` or `seldom`, of the modules imported so far."""
    return frozenset(_inline)


def seldom_functions() -> frozenset[Callable[..., Any]]:
    """Those of them that are marked `seldom`."""
    return frozenset(_seldom)
