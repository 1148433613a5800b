"""Extents -> Arrow tables with the columns of a trace. The only module of capture that needs pyarrow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from replay.capture.extents import Extents, Owner
from replay.trace.schema import KINDS
from replay.trace.write import ARROW_SCHEMA


def table(extents: Extents, owners: Sequence[Owner]) -> pa.Table:
    """Rows as a table of `ARROW_SCHEMA`; their `vma` counts through the VMAs of all owners."""
    of_vma = extents.vma
    vmas = [vma for owner in owners for vma in owner.vmas]
    number = np.array([i for owner in owners for i in range(len(owner.vmas))], np.uint32)
    owner_of = np.repeat(np.arange(len(owners)), [len(owner.vmas) for owner in owners])[of_vma]
    values: dict[str, object] = {
        "mm": np.array([owner.mm for owner in owners], np.uint32)[owner_of],
        "pid": np.array([owner.pid for owner in owners], np.uint32)[owner_of],
        "comm": _text([owner.comm for owner in owners], owner_of),
        "vma": number[of_vma],
        "vma_start": np.array([vma.start for vma in vmas], np.uint64)[of_vma],
        "vma_pages": np.array([vma.pages for vma in vmas], np.uint64)[of_vma],
        "vma_perms": _text([vma.perms for vma in vmas], of_vma),
        "vma_flags": _text([vma.flags for vma in vmas], of_vma),
        "vma_name": _text([vma.name for vma in vmas], of_vma),
        "kind": _text(KINDS, extents.kind),
    }
    columns = extents._asdict()
    arrays = []
    for field in ARROW_SCHEMA:
        value = values.get(field.name, columns.get(field.name))
        if isinstance(value, np.ndarray):
            value = pa.array(value.astype(field.type.to_pandas_dtype(), copy=False))
        arrays.append(value)
    return pa.Table.from_arrays(arrays, schema=ARROW_SCHEMA)


def _text(values: Sequence[str], index: npt.NDArray[np.generic]) -> pa.DictionaryArray:
    """values[index] as a dictionary column of distinct values."""
    # names of files are bytes that need not be UTF-8
    clean = [value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace") for value in values]
    codes = {value: code for code, value in enumerate(dict.fromkeys(clean))}
    code_of = np.array([codes[value] for value in clean], np.uint32)
    return pa.DictionaryArray.from_arrays(pa.array(code_of[index]), pa.array(list(codes), pa.large_string()))
