# SPDX-License-Identifier: Apache-2.0
"""Traces that are wrong in one place: values, rows, metadata, schema or bytes, by a seed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

import replay
from replay.trace import totals
from replay.trace.frame import SCHEMA, Trace
from replay.trace.metadata import AddressSpace, encode_metadata

CAPTURES: Final = Path(__file__).parents[2] / "captures"

KINDS: Final = ("values", "rows", "metadata", "schema", "bytes")

WORDS: Final = (
    *(
        "",
        "x",
        "page",
        "pmd",
        "hugetlb",
        "special",
        "swap",
        "marker",
        "rw-p",
        "r--s",
        "---p",
        "rd wr",
        "[heap]",
    ),
    *("live", "exit", "ptrace", "cgroup", "none", "known", "unknown", "precise", "average", "inferred"),
    *(
        "x86_64",
        "aarch64",
        "riscv64",
        "4096",
        "16384",
        "0",
        "-1",
        "1",
        "2",
        "true",
        "null",
        "[]",
        "{}",
        "1e300",
    ),
)


def small_traces() -> dict[str, Trace]:
    """Three bundled captures, cut: processes as version 1 has them, PMD mappings, large folios."""
    pipeline = replay.read_trace(CAPTURES / "pipeline.parquet")
    return {
        "pipeline": _of_processes(pipeline, 3),
        "numpy-thp": _of_vmas(replay.read_trace(CAPTURES / "numpy-thp.parquet"), "pmd"),
        "numpy-32k": _of_vmas(replay.read_trace(CAPTURES / "numpy-32k.parquet"), "page"),
    }


def _of_processes(trace: Trace, count: int) -> Trace:
    meta = dataclasses.replace(trace.meta, address_spaces=trace.meta.address_spaces[:count])
    return Trace(trace.frame.filter(pl.col("mm") < count), meta, trace.name)


def _of_vmas(trace: Trace, kind: str) -> Trace:
    """About 300 rows of one address space, large folios first, with what capture writes down now."""
    wanted = (pl.col("order") > 0) & (pl.col("kind").cast(pl.String) == kind)
    rich = trace.frame.group_by("vma", maintain_order=True).agg(wanted.sum().alias("large"), pl.len())
    chosen, rows = [], 0
    for vma, _, size in rich.sort("large", descending=True, maintain_order=True).iter_rows():
        if rows + size <= 300:
            chosen.append(vma)
            rows += size
    frame = trace.frame.filter(pl.col("vma").is_in(chosen) & (pl.col("own") <= 1))
    added = totals.sums(frame, 1)[0].tolist()
    figures = dict(zip(totals.TYPES, added, strict=True))
    more = {name: figures.pop(name) for name in ("special", "marker")}
    figures["rss_anon"] -= 1
    more["rss_anon"] = 1
    space = trace.meta.address_spaces[0]
    space = dataclasses.replace(
        space,
        **figures,
        cmdline="python made-up",
        held_ms=1.5,
        unaccounted={k: v for k, v in more.items() if v},
    )
    meta = dataclasses.replace(trace.meta, address_spaces=(space,), format_version=2)
    return Trace(frame, meta, trace.name)


def mutated(trace: Trace, kind: str, seed: int, path: Path) -> str:
    """Write the trace, wrong in one place, to `path`; returns what was done to it."""
    random = Random(f"{kind} {seed}")
    table = trace.frame.to_arrow()
    pairs = encode_metadata(trace.meta)
    if kind == "values":
        table, what = _values(table, random)
    elif kind == "rows":
        table, what = _rows(table, random)
    elif kind == "metadata":
        pairs, what = _metadata(pairs, random)
    elif kind == "schema":
        table, what = _schema(table, random)
    else:
        what = ""
    pq.write_table(table.replace_schema_metadata(pairs), path, compression="zstd")
    return _bytes(path, random) if kind == "bytes" else what


def _values(table: pa.Table, random: Random) -> tuple[pa.Table, str]:
    """One value, a few, or all of a column."""
    name = random.choice(table.column_names)
    values = table.column(name).to_pylist()
    rows = random.choice(
        [[random.randrange(len(values))], random.sample(range(len(values)), 5), range(len(values))]
    )
    change = random.choice(_CHANGES)
    for row in rows:
        values[row] = _within(change(values[row], values, random), SCHEMA[name])
    kind = table.schema.field(name).type
    place = table.schema.get_field_index(name)
    column = (
        pa.array(values, pa.large_string()).cast(kind)
        if pa.types.is_dictionary(kind)
        else pa.array(values, kind)
    )
    return table.set_column(place, table.schema.field(name), column), f"{name} of {len(rows)} rows"


def _number(value: Any) -> int:
    return value if isinstance(value, int) else len(str(value))


_CHANGES: Final = (
    lambda value, values, random: _number(value) + 1,
    lambda value, values, random: _number(value) - 1,
    lambda value, values, random: _number(value) * 2,
    lambda value, values, random: _number(value) ^ (1 << random.randrange(52)),
    lambda value, values, random: _number(value) ^ (1 << random.randrange(16)),
    lambda value, values, random: random.choice(values),
    lambda value, values, random: random.choice([0, 1, 2, 511, 512, (1 << 52) - 1, 1 << 60, -1]),
    lambda value, values, random: random.getrandbits(random.randrange(1, 64)),
    lambda value, values, random: random.choice(WORDS),
)


def _within(value: Any, kind: pl.DataType) -> Any:
    """The value, or one like it that the type of the column holds."""
    if kind == pl.Categorical():
        return str(value)
    if kind == pl.Boolean():
        return bool(_number(value) % 2)
    widths: dict[pl.DataType, int] = {pl.UInt8(): 8, pl.UInt32(): 32, pl.UInt64(): 64}
    bits = widths.get(kind, 63)
    return _number(value) % (1 << bits)


def _rows(table: pa.Table, random: Random) -> tuple[pa.Table, str]:
    """Rows that are lost, there twice, or elsewhere."""
    count = len(table)
    order = list(range(count))
    what = random.choice(
        ["one lost", "some lost", "head", "tail", "twice", "swapped", "moved", "reversed", "none"]
    )
    place = random.randrange(count)
    if what == "one lost":
        del order[place]
    elif what == "some lost":
        order = [row for row in order if random.random() > 0.3]
    elif what == "head":
        order = order[:place]
    elif what == "tail":
        order = order[place:]
    elif what == "twice":
        order.insert(place, place)
    elif what == "swapped":
        other = random.randrange(count)
        order[place], order[other] = order[other], order[place]
    elif what == "moved":
        order.insert(random.randrange(count - 1), order.pop(place))
    elif what == "reversed":
        order.reverse()
    else:
        order = []
    return table.take(pa.array(order, pa.int64())), f"rows {what}, at {place}"


def _metadata(pairs: dict[str, str], random: Random) -> tuple[dict[str, str], str]:
    """A pair that is missing or another, or a field of an address space."""
    name = random.choice([*pairs, "address_spaces", "address_spaces", "address_spaces"])
    if name == "address_spaces" and random.random() < 0.9:
        return _address_spaces(pairs, random)
    if random.random() < 0.3:
        return {key: value for key, value in pairs.items() if key != name}, f"without {name}"
    value = random.choice(
        [random.choice(WORDS), pairs[name][:-1], pairs[name] + "0", random.choice([*pairs.values()])]
    )
    return pairs | {name: value}, f"{name} = {value[:40]!r}"


def _address_spaces(pairs: dict[str, str], random: Random) -> tuple[dict[str, str], str]:
    spaces = json.loads(pairs["address_spaces"])
    place = random.randrange(len(spaces))
    what = random.choice(["lost", "twice", "reversed", *["field"] * 12])
    if what == "lost":
        del spaces[place]
    elif what == "twice":
        spaces.insert(place, spaces[place])
    elif what == "reversed":
        spaces.reverse()
    else:
        fields = [field.name for field in dataclasses.fields(AddressSpace)]
        name = random.choice([*fields, "unknown"])
        value = spaces[place].get(name, 0)
        value = random.choice(
            [
                _number(value) + 1,
                max(_number(value) - 1, 0),
                0,
                -1,
                1.5,
                None,
                True,
                {},
                [],
                [7],
                random.choice(WORDS),
            ]
        )
        spaces[place][name] = value
        what = f"{name} = {value!r}"
    return pairs | {"address_spaces": json.dumps(spaces)}, f"address space {place}: {what}"


def _schema(table: pa.Table, random: Random) -> tuple[pa.Table, str]:
    """A column that is missing, is called otherwise, has another type, empty values, or stands elsewhere."""
    place = random.randrange(len(table.column_names))
    name = table.column_names[place]
    what = random.choice(["lost", "renamed", "cast", "empty", "moved", "added", "twice"])
    column = table.column(place)
    if what == "lost":
        return table.remove_column(place), f"without {name}"
    if what == "renamed":
        names = [*table.column_names]
        names[place] = random.choice([name.upper(), f"{name}s", " " + name])
        return table.rename_columns(names), f"{name} renamed"
    if what == "cast":
        kind = random.choice(
            [pa.int8(), pa.int32(), pa.int64(), pa.uint16(), pa.uint64(), pa.float64(), pa.string()]
        )
        values = [
            _number(value) if not pa.types.is_string(kind) else str(value) for value in column.to_pylist()
        ]
        numbers = values if pa.types.is_string(kind) else np.array(values).astype(kind.to_pandas_dtype())
        return table.set_column(place, name, pa.array(numbers, kind)), f"{name} as {kind}"
    if what == "empty":
        values = column.to_pylist()
        values[random.randrange(len(values))] = None
        text = pa.types.is_dictionary(column.type)
        return table.set_column(
            place, name, pa.array(values, pa.string() if text else column.type)
        ), f"{name} empty"
    if what == "moved":
        return table.remove_column(place).append_column(name, column), f"{name} moved"
    if what == "added":
        return table.append_column("more", column), "a column more"
    return table.append_column(name, column), f"{name} twice"


def _bytes(path: Path, random: Random) -> str:
    """Bytes of the file that are others, missing, or too many."""
    content = bytearray(path.read_bytes())
    what = random.choice(["one", "some", "zeros", "cut", "end", "hole", "footer"])
    place = random.randrange(len(content))
    if what == "one":
        content[place] ^= 1 << random.randrange(8)
    elif what == "some":
        for _ in range(20):
            content[random.randrange(len(content))] = random.randrange(256)
    elif what == "zeros":
        content[place : place + 64] = bytes(len(content[place : place + 64]))
    elif what == "cut":
        del content[place:]
    elif what == "end":
        content += random.randbytes(9)
    elif what == "hole":
        del content[place : place + 7]
    else:
        # the metadata and places of columns, which no checksum covers
        at = len(content) - 1 - random.randrange(min(4096, len(content)))
        content[at] ^= 1 << random.randrange(8)
    path.write_bytes(bytes(content))
    return f"bytes {what} at {place} of {len(content)}"
