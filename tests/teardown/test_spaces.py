# SPDX-License-Identifier: Apache-2.0
"""Address spaces of a trace: the same, whether its rows are in memory or come batch by batch."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from replay.teardown import replayer, spaces
from replay.teardown.variants import chosen
from replay.trace import file
from replay.trace.frame import Trace

CAPTURES = Path(__file__).resolve().parent.parent.parent / "captures"


def arm64(name: str) -> Trace:
    """A bundled trace as if it were of arm64."""
    trace = file.read(CAPTURES / f"{name}.parquet")
    return dataclasses.replace(trace, meta=dataclasses.replace(trace.meta, architecture="aarch64"))


@pytest.mark.parametrize("rows", [1, 7, 1000, 1 << 20])
def test_streamed_as_in_memory(rows: int) -> None:
    trace = arm64("pipeline")
    batches = trace.frame.to_arrow().combine_chunks().to_batches(max_chunksize=rows)
    found = list(spaces.streamed(batches, trace))
    wanted = [space for space in spaces.address_spaces(trace) if len(space.extents.vpn)]
    assert len(wanted) > 3
    for one, two in zip(found, wanted, strict=True):
        assert (one.mm, one.pid, one.comm, one.page_tables) == (two.mm, two.pid, two.comm, two.page_tables)
        for name, column in two.extents._asdict().items():
            np.testing.assert_array_equal(getattr(one.extents, name), column, err_msg=name)


def test_a_file_of_arm64_counts_as_its_rows_in_memory(tmp_path: Path) -> None:
    trace = arm64("postgresql-run")
    trace.write(tmp_path / "t.parquet")
    algorithms = chosen(["baseline", "v2", "mainline"])
    streamed = replayer.replayed_file(tmp_path / "t.parquet", algorithms, name=trace.name)
    assert streamed.results.equals(replayer.replayed(trace, algorithms).results)


def test_no_rows_are_no_address_spaces() -> None:
    trace = arm64("redis")
    assert list(spaces.streamed([], trace)) == []
    assert list(spaces.streamed(trace.frame.head(0).to_arrow().to_batches(), trace)) == []
