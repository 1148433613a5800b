# SPDX-License-Identifier: Apache-2.0
"""Traces come back as they were written; what is not a trace is refused with a line that says why."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import stat
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import replay
from replay.errors import ReplayError, TraceError
from replay.trace.frame import SCHEMA, Trace
from replay.trace.kpageflags import KPF_ANON, KPF_HUGE, bit
from replay.trace.metadata import AddressSpace, Metadata, encode_metadata
from replay.trace.schema import OPTIONAL
from tests.teardown.address_spaces import Piece, trace_of


@pytest.fixture
def trace() -> Trace:
    # rows: three order-0 neighbours; a partly mapped order-3 folio; a PMD mapping; a swap entry; a page twice
    return trace_of(
        [
            Piece(count=3),
            Piece(order=3, count=5, new_table=True),
            Piece(what="pmd"),
            Piece(what="swap", new_vma=True),
            Piece(what="pages", type="file", count=1),
            Piece(what="again", count=1),
        ],
        page_tables=9,
    )


@pytest.fixture
def path(trace: Trace, tmp_path: Path) -> Path:
    return trace.write(tmp_path / "t.parquet")


def refused(path: Path) -> str:
    with pytest.raises(TraceError) as caught:
        replay.read_trace(path)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.status == 1
    assert str(path) in message
    return message


def test_comes_back(trace: Trace, path: Path):
    back = replay.read_trace(path)
    text = [name for name, dtype in SCHEMA.items() if dtype == pl.Categorical]
    assert back.frame.with_columns(pl.col(text).cast(pl.String)).equals(
        trace.frame.with_columns(pl.col(text).cast(pl.String))
    )
    assert back.frame.schema == pl.Schema(SCHEMA)
    assert back.meta == trace.meta
    assert back.name == "t"


def test_written_for_the_owner_only(path: Path):
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_metadata_are_seen_by_any_parquet_reader(path: Path):
    assert pq.read_table(path).schema.metadata[b"page_size"] == b"4096"
    assert pl.read_parquet_metadata(path)["format_version"] == "2"


def test_polars_alone_can_rewrite_a_trace(path: Path):
    pl.read_parquet(path).write_parquet(path, metadata=pl.read_parquet_metadata(path))
    assert len(replay.read_trace(path).frame) > 0


def test_an_existing_file_stays(trace: Trace, path: Path):
    before = path.read_bytes()
    with pytest.raises(ReplayError, match="exists"):
        trace.write(path)
    assert path.read_bytes() == before
    trace.write(path, force=True)


def test_an_error_leaves_nothing_behind(tmp_path: Path, trace: Trace):
    wrong = Trace(trace.frame.drop("pfn"), trace.meta)
    with pytest.raises(pl.exceptions.ColumnNotFoundError):
        wrong.write(tmp_path / "t.parquet")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="no /dev/full")
def test_no_such_folder(trace: Trace, tmp_path: Path):
    with pytest.raises(ReplayError, match="there is no folder"):
        trace.write(tmp_path / "no" / "t.parquet")


def test_not_a_file(tmp_path: Path):
    assert "no such file" in refused(tmp_path / "none.parquet")
    assert "folder" in refused(tmp_path)


def test_not_parquet(tmp_path: Path):
    path = tmp_path / "t.parquet"
    path.write_text("perf.data")
    assert "not a Parquet file" in refused(path)
    path.write_text("")
    assert "empty" in refused(path)


@pytest.mark.parametrize("keep", [0.3, 0.9, 0.999])
def test_cut(path: Path, keep: float):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    assert "cut or damaged" in refused(path)


def test_damaged_inside(path: Path):
    whole = bytearray(path.read_bytes())
    for place in range(40, 400):
        whole[place] ^= 0x55
    path.write_bytes(bytes(whole))
    refused(path)


def test_another_parquet_file(tmp_path: Path):
    path = tmp_path / "t.parquet"
    pl.DataFrame({"a": [1]}).write_parquet(path)
    assert "not a trace" in refused(path)


def rewrite(path: Path, table=None, **pairs: str | None) -> None:
    """The file again, with other columns or other metadata."""
    metadata = {k.decode(): v.decode() for k, v in pq.read_metadata(path).metadata.items()}
    metadata = {k: v for k, v in (metadata | pairs).items() if v is not None and k != "ARROW:schema"}
    table = pq.read_table(path) if table is None else table
    pq.write_table(table.replace_schema_metadata(metadata), path)


def space_with(name: str, value: object) -> dict[str, str | None]:
    """Metadata of one address space with such a field."""
    space = {"pid": 1, "comm": "x", "page_tables": 3, name: value}
    return {"address_spaces": json.dumps([space])}


@pytest.mark.parametrize(
    ("pairs", "says"),
    [
        ({"format_version": "99"}, "version 99"),
        ({"format_version": None}, "not a trace"),
        ({"page_size": None}, "'page_size' is missing"),
        ({"page_size": "many"}, "'page_size' is not valid"),
        ({"page_size": "5000"}, "page size 5000"),
        ({"page_size": "16384"}, "page size 16384: x86_64 has pages of 4096 bytes only"),
        ({"page_size": "-4096"}, "'page_size' is not valid"),
        ({"address_spaces": "[]"}, "no address space"),
        ({"address_spaces": "[{}]"}, "'address_spaces' is not valid"),
        ({"address_spaces": '[{"pid":1,"comm":"x","page_tables":-3}]'}, "page_tables = -3"),
        ({"address_spaces": '[{"pid":1,"comm":"x","page_tables":1e30}]'}, "page_tables = 1e+30"),
        ({"address_spaces": '[{"pid":true,"comm":"x","page_tables":3}]'}, "pid = True"),
        ({"address_spaces": '[{"pid":5000000,"comm":"x","page_tables":3}]'}, "pid = 5000000"),
        ({"address_spaces": "{}"}, "expected a list"),
        ({"address_spaces": "[3]"}, "expected objects"),
        (space_with("held_ms", -1), "held_ms = -1"),
        (space_with("shared_with", ["x"]), "shared_with"),
        (space_with("unaccounted", {"rss_anon": -1}), "unaccounted"),
        (space_with("unaccounted", {"rss": 1}), "unaccounted"),
        (space_with("cmdline", 3), "cmdline is not text"),
        ({"mode": "dead"}, "'mode' is not valid"),
        ({"held": "gdb"}, "'held' is not valid"),
        ({"pmd": "maybe"}, "'pmd' is not valid"),
        ({"mapcounts": "some"}, "'mapcounts' is not valid"),
        ({"dirty": ""}, "'dirty' is not valid"),
        ({"architecture": "x86 64"}, "'architecture' is not valid"),
        ({"captured_at": "yesterday"}, "'captured_at' is not valid"),
        ({"changed_entries": "-1"}, "'changed_entries' is not valid"),
        ({"changed_entries": "true"}, "'changed_entries' is not valid"),
        ({"redacted": "1"}, "'redacted' is not valid"),
        ({"thp": '{"enabled":3}'}, "'thp' is not valid"),
        ({"thp": "[" * 100_000}, "'thp' is not valid"),
    ],
)
def test_metadata(path: Path, pairs: dict[str, str | None], says: str):
    rewrite(path, **pairs)
    assert says in refused(path)


def test_memory_cgroups_may_be_missing(path: Path):
    rewrite(path, pq.read_table(path).drop_columns(["memcg"]))
    assert replay.read_trace(path).frame["memcg"].unique().to_list() == [0]


@pytest.mark.parametrize("name", [name for name in SCHEMA if name not in OPTIONAL])
def test_a_column_is_missing(path: Path, name: str):
    rewrite(path, pq.read_table(path).drop_columns([name]))
    assert f"column '{name}' is missing" in refused(path)


@pytest.mark.parametrize("name", list(SCHEMA))
def test_a_column_is_of_a_wrong_type(path: Path, name: str):
    table = pq.read_table(path)
    place = table.schema.names.index(name)
    values = [1.5] * len(table)
    rewrite(path, table.set_column(place, name, [values]))
    assert f"column '{name}' is double" in refused(path)


def test_a_negative_count_is_of_a_wrong_type(path: Path):
    table = pq.read_table(path)
    place = table.schema.names.index("mapcount")
    rewrite(path, table.set_column(place, "mapcount", [[-1] * len(table)]))
    assert "column 'mapcount' is int64" in refused(path)


def test_an_empty_value(path: Path):
    table = pq.read_table(path)
    place = table.schema.names.index("pfn")
    rewrite(path, table.set_column(place, pa.field("pfn", pa.int64()), [pa.nulls(len(table), pa.int64())]))
    assert "column 'pfn' has empty values" in refused(path)


@pytest.mark.parametrize(
    ("row", "values", "says"),
    [
        (0, {"kind": "huge"}, "kind is none of"),
        (5, {"mm": 5}, "no address space"),
        (0, {"vpn": -1}, "vpn is out of range"),
        (0, {"pfn": -1}, "pfn is out of range"),
        (0, {"pfn": 1 << 60}, "pfn is out of range"),
        (0, {"folio": -8}, "folio is out of range"),
        (0, {"pages": 0}, "no pages"),
        (1, {"vpn": (1 << 20) + 1}, "overlaps"),
        (0, {"pages": 600}, "page-table page"),
        (0, {"vma_pages": 1}, "beyond its VMA"),
        (0, {"vma_start": (1 << 64) - 1}, "beyond its VMA"),
        (1, {"order": 63}, "order is above"),
        (1, {"order": 2}, "beyond its folio"),
        (1, {"pfn": 1}, "beyond its folio"),
        (1, {"folio_mapped": 9}, "folio_mapped is above"),
        (1, {"folio_mapped": 4}, "more pages of folio"),
        (1, {"folio_mapcount": 4}, "folio_mapcount is below folio_mapped"),
        (1, {"folio_mapcount": 7}, "the totals of folio"),
        (1, {"folio_mapped": 7, "folio_mapcount": 6}, "folio_mapcount is below folio_mapped"),
        (0, {"folio_mapcount": 2}, "the totals of an order-0 page"),
        (0, {"kpageflags": bit(KPF_HUGE)}, "a page of hugetlb"),
        (2, {"pages": 511}, "lacks its last pages"),
        (2, {"vpn": (1 << 20) + 1025, "pages": 511, "pfn": 4609}, "lacks its first pages"),
        (2, {"order": 10, "folio": 4096, "pfn": 4097}, "frames of a PMD mapping are not aligned"),
        (2, {"kind": "hugetlb", "pages": 511}, "lacks its last pages"),
        (4, {"mapcount": 3, "folio_mapcount": 3}, "described in another way"),
        (4, {"kpageflags": bit(KPF_ANON)}, "described in another way"),
        (1, {"own": 0}, "own is 0"),
        (1, {"own": 2}, "own is above mapcount"),
        (1, {"own": 2, "mapcount": 2, "folio_mapcount": 10}, "another number of times"),
        (1, {"mapcount": 0}, "own is above mapcount"),
        (4, {"own": 1}, "another number of times"),
        (3, {"vma": 0}, "the VMA has another place"),
        (2, {"vma": 7}, "VMAs are not in order"),
        (0, {"folio": 4097}, "an order-0 page is in a folio that begins elsewhere"),
        (0, {"pid": 2}, "the row is of made-up (2)"),
        (4, {"comm": "other"}, "the row is of other (1)"),
        (0, {"vma_perms": "rwxz"}, "vma_perms 'rwxz'"),
        (0, {"vma_perms": ""}, "vma_perms ''"),
        (0, {"vma_flags": "rd,wr"}, "vma_flags 'rd,wr'"),
        (1, {"vma_perms": "r--p"}, "the VMA has other permissions"),
        (1, {"vma_name": "[heap]"}, "the VMA has other permissions, flags or another name"),
        (3, {"mapcount": 1}, "a swap entry or marker says something of a folio"),
        (3, {"order": 3}, "a swap entry or marker says something of a folio"),
        (3, {"kind": "marker"}, "a marker has a place in swap"),
        (3, {"dirty": True}, "what is not mapped is dirty"),
        (3, {"kind": "special", "own": 1}, "a special entry counts mappings"),
        (3, {"kind": "special", "order": 3}, "the folio is not aligned"),
    ],
)
def test_impossible_values(trace: Trace, tmp_path: Path, row: int, values: dict, says: str):
    rows = trace.frame.with_columns(pl.col(pl.Categorical).cast(pl.String)).to_dicts()
    rows[row] |= values
    frame = pl.DataFrame(
        rows, schema={name: pl.String if t == pl.Categorical else t for name, t in SCHEMA.items()}
    )
    path = tmp_path / "bad.parquet"
    frame.write_parquet(path, metadata=encode_metadata(trace.meta))
    message = refused(path)
    assert says in message
    assert re.search(r"row \d+|folio \d+", message)


@pytest.mark.parametrize("kind", ["pmd", "hugetlb"])
def test_a_huge_mapping_of_order_0(kind: str, trace: Trace, tmp_path: Path):
    """As capture makes of DAX memory mapped by a PMD: its references must not be another folio's."""
    row = trace.frame.filter(pl.col("order") == 0, pl.col("kind").cast(pl.String) == "page")[:1]
    huge = row.with_columns(kind=pl.lit(kind).cast(SCHEMA["kind"])).select(trace.frame.columns)
    Trace(huge, trace.meta).write(tmp_path / "t.parquet")
    message = refused(tmp_path / "t.parquet")
    assert "row 0: a huge mapping of order 0" in message
    assert "damaged" not in message


def test_a_folio_inside_another(trace: Trace, tmp_path: Path):
    folio = trace.frame.filter(pl.col("order") == 3)["folio"][0]
    moved = trace.frame.with_columns(
        pl.when(pl.col("order") == 0, pl.col("kind").cast(pl.String) == "page", pl.col("own") == 1)
        .then(pl.lit(folio + 5))
        .otherwise(pl.col(name))
        .alias(name)
        for name in ("pfn", "folio")
    )
    Trace(moved, trace.meta).write(tmp_path / "t.parquet")
    assert "lies in folio" in refused(tmp_path / "t.parquet")


def test_version_1_has_no_markers(trace: Trace, tmp_path: Path):
    swap = pl.col("kind").cast(pl.String) == "swap"
    marked = trace.frame.with_columns(
        kind=pl.when(swap)
        .then(pl.lit("marker"))
        .otherwise(pl.col("kind").cast(pl.String))
        .cast(pl.Categorical),
        pfn=pl.when(swap).then(0).otherwise(pl.col("pfn")),
    )
    path = Trace(marked, trace.meta).write(tmp_path / "t.parquet")
    assert replay.run(replay.read_trace(path), ["v2"])["swap_entries"].item() == 0
    Trace(marked, dataclasses.replace(trace.meta, format_version=1)).write(path, force=True)
    assert "kind is none of page, pmd, hugetlb, special, swap" in refused(path)


def test_rows_out_of_order(trace: Trace, tmp_path: Path):
    Trace(trace.frame.reverse(), trace.meta).write(tmp_path / "t.parquet")
    message = refused(tmp_path / "t.parquet")
    assert "rows are out of order: sort them by mm and vpn" in message
    assert "capture" not in message
    sorted_again = trace.frame.reverse().sort("mm", "vpn")
    Trace(sorted_again, trace.meta).write(tmp_path / "t.parquet", force=True)
    replay.read_trace(tmp_path / "t.parquet")


def test_an_address_space_without_pages_is_one(tmp_path: Path):
    spaces = (AddressSpace(1, "empty", 3), AddressSpace(2, "empty too", 4))
    path = Trace(pl.DataFrame(schema=SCHEMA), Metadata(spaces)).write(tmp_path / "t.parquet")
    found = replay.run(replay.read_trace(path), ["v2"])
    assert found.select("pid", "page_tables", "release_entries").rows() == [(1, 3, 3), (2, 4, 4)]
