# SPDX-License-Identifier: Apache-2.0
"""captures/FORMAT.md says what the schema says, and its queries run."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from replay.trace.document import DESCRIPTIONS, KIND_MEANINGS, QUERIES, markdown
from replay.trace.schema import COLUMNS, KINDS

ROOT = Path(__file__).parents[2]


def test_every_column_and_kind_is_described() -> None:
    assert list(DESCRIPTIONS) == list(COLUMNS)
    assert list(KIND_MEANINGS) == list(KINDS)


def test_the_page_is_current() -> None:
    assert (ROOT / "captures" / "FORMAT.md").read_text() == markdown(), "run scripts/document_format"


@pytest.mark.parametrize("title", QUERIES)
def test_the_queries_run(title: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    engine, query = QUERIES[title]
    rows = eval(query, {"pl": pl}) if engine == "polars" else pytest.importorskip("duckdb").sql(query).pl()
    assert len(rows) > 0
