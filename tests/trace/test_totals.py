# SPDX-License-Identifier: Apache-2.0
"""Rows are compared with the figures of their address space: lost ones are refused or noted."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import polars as pl
import pytest

import replay
from replay.errors import TraceError
from replay.report import notes
from replay.trace import totals
from replay.trace.frame import Trace
from replay.trace.metadata import FIGURES, AddressSpace, Metadata

CAPTURES = Path(__file__).parents[2] / "captures"


@pytest.fixture(scope="module")
def first() -> Trace:
    """Eleven processes, in format version 1: nobody wrote down what the rows add up to."""
    return replay.read_trace(CAPTURES / "pipeline.parquet")


@pytest.fixture(scope="module")
def second(first: Trace) -> Trace:
    """The same as capture writes it now."""
    added = totals.sums(first.frame, len(first.meta.address_spaces)).tolist()
    spaces = []
    for space, of_space in zip(first.meta.address_spaces, added, strict=True):
        more = {
            name: pages - getattr(space, name, 0)
            for name, pages in zip(totals.TYPES, of_space, strict=True)
            if pages != getattr(space, name, 0)
        }
        spaces.append(dataclasses.replace(space, unaccounted=more))
    meta = dataclasses.replace(first.meta, address_spaces=tuple(spaces), format_version=2)
    return dataclasses.replace(first, meta=meta)


def written(trace: Trace, frame: pl.DataFrame, folder: Path) -> Path:
    return dataclasses.replace(trace, frame=frame).write(folder / "t.parquet", force=True)


def test_bundled_captures_add_up(first: Trace) -> None:
    found, absent = totals.differences(totals.sums(first.frame, len(first.meta.address_spaces)), first.meta)
    assert (found, absent) == ([], frozenset())
    assert first.notes == ()


def test_sums_are_those_of_single_rows(second: Trace) -> None:
    """Against adding up row by row."""
    expected = {(mm, name): 0 for mm in range(len(second.meta.address_spaces)) for name in totals.TYPES}
    for row in second.frame.iter_rows(named=True):
        name = row["kind"]
        if name in ("page", "pmd"):
            anon, backed = (row["kpageflags"] >> number & 1 for number in (12, 14))
            name = "rss_anon" if anon else "rss_shmem" if backed else "rss_file"
        expected[row["mm"], name] += row["pages"]
    found = totals.sums(second.frame, len(second.meta.address_spaces))
    assert {key: int(found[key[0], totals.TYPES.index(key[1])]) for key in expected} == expected


def test_rows_of_one_address_space_of_many(second: Trace, tmp_path: Path) -> None:
    path = written(second, second.frame.filter(pl.col("mm") == 5), tmp_path)
    back = replay.read_trace(path)
    whole = replay.run(second).filter(pl.col("mm") == 5)
    assert replay.run(back).drop("trace").equals(whole.drop("trace"))
    assert len(back.notes) == 1
    assert back.notes[0].startswith("10 of 11 address spaces (0, ")
    assert "have no rows" in back.notes[0]
    assert any("10 of 11" in line for line in notes.noticed(back))


@pytest.mark.parametrize("which", ["half", "one", "first of each"])
def test_lost_rows(which: str, second: Trace, tmp_path: Path) -> None:
    rows = second.frame.with_row_index("row")
    kept = {
        "half": rows.filter((pl.col("mm") != 5) | (pl.col("row") % 2 == 0)),
        "one": rows.filter(pl.col("row") != 1),
        "first of each": rows.filter(pl.col("mm") == pl.col("mm").shift(1)),
    }[which].drop("row")
    path = written(second, kept, tmp_path)
    with pytest.raises(TraceError) as caught:
        replay.read_trace(path)
    message = str(caught.value)
    assert "\n" not in message
    assert "replay run --partial" in message
    assert "damaged" not in message
    partial = replay.read_trace(path, partial=True)
    assert len(partial.notes) == 1
    lost = second.frame["pages"].sum() - kept["pages"].sum()
    counted = replay.run(partial, ["baseline"])
    before = replay.run(second, ["baseline"])
    pages = ["ptes", "special_ptes", "swap_entries"]
    assert (
        before.select(pages).sum().sum_horizontal()[0] - counted.select(pages).sum().sum_horizontal()[0]
        == lost
    )


def test_all_rows_are_lost(second: Trace, tmp_path: Path) -> None:
    path = written(second, second.frame.clear(), tmp_path)
    for partial in (False, True):
        with pytest.raises(TraceError, match="all rows were lost"):
            replay.read_trace(path, partial=partial)


def test_a_lost_row_that_no_figure_counts(second: Trace, tmp_path: Path) -> None:
    special = second.frame["kind"].cast(pl.String) == "special"
    assert special.any()
    path = written(second, second.frame.filter(~special), tmp_path)
    with pytest.raises(TraceError, match="pages of special"):
        replay.read_trace(path)


def test_more_rows_than_figures(second: Trace, tmp_path: Path) -> None:
    """Metadata of another trace."""
    spaces = [dataclasses.replace(space, rss_anon=0, unaccounted={}) for space in second.meta.address_spaces]
    meta = dataclasses.replace(second.meta, address_spaces=tuple(spaces))
    path = dataclasses.replace(second, meta=meta).write(tmp_path / "t.parquet")
    with pytest.raises(TraceError):
        replay.read_trace(path)


def test_a_part_is_fine(second: Trace, tmp_path: Path) -> None:
    kept = second.frame.filter(pl.col("vma_perms").cast(pl.String).str.starts_with("rw"))
    part = second.as_part(kept, "writable VMAs")
    path = part.write(tmp_path / "t.parquet")
    back = replay.read_trace(path)
    assert back.meta.part == "writable VMAs"
    assert replay.run(back).drop("trace").equals(replay.run(part).drop("trace"))
    assert any("a part of a trace: writable VMAs" in line for line in notes.noticed(back))


def test_filtered_frames_in_memory(second: Trace) -> None:
    one = dataclasses.replace(second, frame=second.frame.filter(pl.col("mm") == 5))
    with pytest.warns(UserWarning, match="10 of 11 address spaces"):
        assert replay.run(one, ["v2"])["mm"].to_list() == [5]
    half = dataclasses.replace(second, frame=second.frame.filter(pl.col("vpn") % 2 == 0))
    with pytest.raises(TraceError, match="--partial"):
        replay.run(half)
    with pytest.warns(UserWarning, match="hold"):
        replay.run(half, ["v2"], partial=True)
    part = replay.run(second.as_part(half.frame), ["v2"])
    assert part["ptes"].sum() < replay.run(second, ["v2"])["ptes"].sum()


def test_version_1_small_differences_are_noted(first: Trace, tmp_path: Path) -> None:
    path = written(first, first.frame.with_row_index("row").filter(pl.col("row") != 1).drop("row"), tmp_path)
    back = replay.read_trace(path)
    assert len(back.notes) == 1
    assert "format version 1 does not say" in back.notes[0]


def test_version_1_much_is_refused(first: Trace) -> None:
    big = pl.col("pages").cast(pl.Int64) * 0 + 100
    spaces = (AddressSpace(1, "big", 9, rss_anon=20_000),)
    frame = first.frame.filter(pl.col("mm") == 0).head(1).with_columns(pages=big.cast(pl.UInt32))
    with pytest.raises(TraceError, match="of 20,000 pages of RssAnon"):
        totals.checked(Trace(frame, Metadata(spaces, format_version=1)), "t")


def test_version_1_markers_among_swap(first: Trace) -> None:
    row = first.frame.head(1).with_columns(
        kind=pl.lit("swap").cast(pl.Categorical), pages=pl.lit(500, pl.UInt32)
    )
    spaces = (AddressSpace(1, "guarded", 9, rss_anon=1),)
    held = totals.checked(Trace(row, Metadata(spaces, format_version=1)), "t")
    assert any("markers" in note or "approximate" in note for note in held.notes)


def test_every_figure_has_a_name() -> None:
    assert set(FIGURES) <= {field.name for field in dataclasses.fields(AddressSpace)}
