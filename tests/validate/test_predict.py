# SPDX-License-Identifier: Apache-2.0
"""The algorithm of a kernel is told by what the kernel shows."""

from __future__ import annotations

import pytest

from replay.validate.predict import algorithm_of

SMP = "tlb_flush_rmaps"
SHOWN = [
    (set(), "v6.1"),
    ({SMP}, "baseline"),
    ({SMP, "__tlb_remove_folio_pages"}, "v6.12"),
    ({SMP, "__tlb_remove_folio_pages", "CONFIG_MM_ID=y"}, "mainline"),
    ({SMP, "__tlb_remove_folio_pages", "CONFIG_MM_ID=y", "CONFIG_NO_PAGE_MAPCOUNT=y"}, "mainline-nomapcount"),
]


@pytest.mark.parametrize(("shown", "name"), SHOWN)
def test_the_algorithm_is_that_of_the_kernel(shown: set[str], name: str):
    assert algorithm_of(shown).name == name


def test_page_tables_go_where_the_configuration_says():
    shown = {SMP, "__tlb_remove_folio_pages"}
    assert algorithm_of(shown).gathers_tables("x86_64")
    assert not algorithm_of({*shown, "CONFIG_PT_RECLAIM=y"}).gathers_tables("x86_64")
