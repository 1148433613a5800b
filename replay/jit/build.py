# SPDX-License-Identifier: Apache-2.0
"""Compiled functions -> objects: numba makes C functions of them, LLVM optimises and emits them.

This runs in a child process (`main`): numba takes half a second to import, and would stay in the parent.
"""

from __future__ import annotations

import importlib
import inspect
import marshal
import os
import sys
from typing import TYPE_CHECKING, Any, Final

import llvmlite.binding as llvm
import numba
import numpy as np
from numba import carray, types
from numba.extending import overload, register_jitable

from replay.jit import compiled, pread
from replay.jit.compiled import Array, Group, arrays_of
from replay.support.parent import end_with

if TYPE_CHECKING:
    from replay.jit.compiled import Compiled

LIBRARY: Final = frozenset({"pread", "memcpy", "memmove", "memset"})
"""What an object may call: pread(2), and what LLVM makes of loops that copy or fill."""

OPTIONS: Final[Any] = {"error_model": "numpy"}
"""A division by zero gives a number: nothing raises."""

SPEED_LEVEL: Final = 3

_pread: Any = types.ExternalFunction(
    "pread", types.int64(types.int32, types.uint64, types.uint64, types.int64)
)


@overload(pread.pread)
def _overload_pread(fd: Any, out: Any, at: Any, count: Any, first: Any) -> Any:
    def machine(fd: Any, out: Any, at: Any, count: Any, first: Any) -> Any:
        size = _pread(np.int32(fd), np.uint64(out.ctypes.data + at * 8), np.uint64(count * 8), first * 8)
        return size >> 3  # -1 stays -1

    return machine


def main(parent: int) -> None:
    """Compile the modules that the command line names, and print their objects.

    parent: PID of the process that started this one, which ends with it, however that ends.
    """
    end_with(parent)
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no object
    for module in sys.argv[1:]:
        importlib.import_module(module)
    for function in compiled.inline_functions():
        if function is not pread.pread:
            register_jitable(**OPTIONS)(function)
    for callee in {each for module in sys.argv[1:] for each in compiled.callees(module)}:
        _declare(callee)
    with output:
        output.write(marshal.dumps({module: object_of(module) for module in sys.argv[1:]}))


def _declare(function: Compiled) -> None:
    """Let compiled functions call one that is in another object: an array is passed as its address and shape.

    Only arrays in C order of the dtype and dimensions that it takes are accepted.
    """
    names = list(inspect.signature(function.python).parameters)
    values: list[str] = []
    kinds: list[Any] = []
    wanted: list[Any] = []
    for name, argument in zip(names, function.arguments, strict=True):
        if isinstance(argument, Group):
            raise TypeError(f"{function.name} takes a group of arrays: only Python can call it")
        wanted.append(argument and (_dtype(argument), argument.ndim, "C"))
        if argument:
            values += [f"{name}.ctypes.data", *(f"{name}.shape[{axis}]" for axis in range(argument.ndim))]
            kinds += [types.uintp, *[types.int64] * argument.ndim]
        else:
            values.append(name)
            kinds.append(types.int64)
    space: dict[str, Any] = {"external": types.ExternalFunction(function.name, types.int64(*kinds))}
    exec(f"def call({', '.join(names)}):\n    return external({', '.join(values)})\n", space)

    def typed(*given: Any) -> Any:
        for name, kind, array in zip(names, given, wanted, strict=True):
            if array and (kind.dtype, kind.ndim, kind.layout) != array:
                raise TypeError(f"{function.name} takes no {kind} as {name}")
        return space["call"]

    overload(function, jit_options=OPTIONS, strict=False)(typed)
    # numba links what it compiles, also here, where nothing of it runs: any address will do
    llvm.add_symbol(function.name, 1)


def object_of(module: str) -> bytes:
    """The object of a module's compiled functions, each under its name, for any processor of this kind."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu="generic", opt=SPEED_LEVEL, codemodel="jitdefault", jit=True
    )
    linked = llvm.parse_assembly("")
    for function in compiled.functions_of(module).values():
        linked.link_in(_llvm_module(function))
    # what is not called from outside can be dropped: numba's exceptions and reference counts
    wanted = compiled.functions_of(module)
    # numba's names hold the length of each part before it, and a tag behind the last
    seldom = {f"{len(each.__name__)}{each.__name__}B" for each in compiled.seldom_functions()}
    for each in linked.functions:
        if not each.is_declaration and each.name not in wanted:
            each.linkage = "internal"
            # a call would pass each array as nine words, and `Rules` as one for each field
            if not each.name.startswith("NRT_") and not any(name in each.name for name in seldom):
                each.add_function_attribute("alwaysinline")
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(SPEED_LEVEL))
    builder.getModulePassManager().run(linked, builder)
    needed = {each.name for each in linked.functions if each.is_declaration}
    elsewhere = {function.name for function in compiled.callees(module)}
    missing = sorted(name for name in needed - LIBRARY - elsewhere if not name.startswith("llvm."))
    if missing:
        raise TypeError(f"{module} calls {', '.join(missing)}: it may allocate or raise")
    return machine.emit_object(linked)


def _dtype(array: Array) -> Any:
    """numba's type of an array's values."""
    return numba.from_dtype(np.dtype(array.dtype))


def _llvm_module(function: Compiled) -> llvm.ModuleRef:
    """A function as a C function of its name: an array is passed as its address and shape."""
    names: list[str] = []
    kinds: list[Any] = []
    values = []
    space: dict[str, Any] = {"carray": carray, "target": numba.njit(**OPTIONS)(function.python)}
    for argument in function.arguments:
        parts = []
        for array in arrays_of(argument):
            name = f"a{len(names)}"
            sizes = [f"{name}_{axis}" for axis in range(array.ndim if array else 0)]
            names += [name, *sizes]
            if array and array.columns:  # `Compiled` has checked it
                sizes[-1] = str(array.columns)
            parts.append(f"carray({name}, ({', '.join(sizes)},))" if array else name)
            kinds.append(types.CPointer(_dtype(array)) if array else types.int64)
            kinds += [types.int64] * len(sizes)
        if isinstance(argument, Group):
            space[argument.kind.__name__] = argument.kind
            values.append(f"{argument.kind.__name__}({', '.join(parts)})")
        else:
            values += parts
    source = f"def entry({', '.join(names)}):\n    return target({', '.join(values)})\n"
    exec(source, space)
    entry = numba.cfunc(types.int64(*kinds), **OPTIONS)(space["entry"])
    module = llvm.parse_assembly(entry.inspect_llvm())
    module.get_function(entry.native_name).name = function.name
    return module
