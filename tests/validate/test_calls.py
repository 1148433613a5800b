# SPDX-License-Identifier: Apache-2.0
"""Call counts as functions of event lists: what is counted, what is not, which cause a difference has."""

from __future__ import annotations

from pathlib import Path

import pytest

from replay.errors import ReplayError
from replay.support import restore
from replay.validate import calls, probes
from replay.validate.observe import preemptions
from replay.validate.tracefs import Event

THREAD = 4711
ENTRY, FINISH, FINISHED = calls.ENTRY, calls.FINISH, calls.FINISHED


def event(name: str, *, pid: int = THREAD, interrupt: bool = False, **fields: int) -> Event:
    return Event(0, 0, name, pid, interrupt, dict(fields))


def names(events: list[Event]) -> list[str]:
    return [each.name for each in events]


def exit_of(*events: Event) -> dict[str, int]:
    """The counters of an exit_mmap() that consists of some events."""
    stream = [event(ENTRY, mm=1), *events, event(FINISH), event(FINISHED), event("free_calls", nr=99)]
    return calls.counts(calls.of_teardown(calls.window(stream)))


# ---------------------------------------------------------------------- the window


def test_calls_count_from_the_entry_of_exit_mmap_to_the_end_of_its_gather():
    stream = [
        event("free_calls", nr=1),
        event(ENTRY, pid=6, mm=9),
        event(ENTRY, mm=1),
        event("free_calls", nr=3),
        event("free_calls", interrupt=True, nr=4),
        event("flush_range", mm=9),
        event("flush_range", mm=1),
        event(FINISHED, pid=6),
        event(FINISH),
        event("free_pages"),
        event(FINISHED),
        event("free_calls", nr=5),
    ]
    inside = calls.window(stream, THREAD)
    assert inside[0].pid == THREAD
    own = calls.of_teardown(inside)
    assert names(own) == [ENTRY, "free_calls", "flush_range", FINISH, "free_pages", FINISHED]
    found = calls.counts(own)
    assert (found["free_calls"], found["gather_slots"], found["tlb_flushes"]) == (1, 3, 1)
    assert found["gather_pages_peak"] == 1
    assert calls.window(stream)[0].pid == 6


def test_an_exit_mmap_of_another_task_is_none_of_this_one():
    assert calls.window([event("free_calls", nr=1), event("sched_switch", prev_state=1)]) == []
    # dup_mmap() that failed leaves an address space without a VMA
    assert calls.window([event(ENTRY, mm=1), event("mm_page_free", pfn=1)]) == []


def test_a_return_that_the_kernel_missed_is_an_error():
    with pytest.raises(ReplayError, match="missed the return"):
        calls.window([event(ENTRY, mm=1), event(FINISH)])
    with pytest.raises(ReplayError, match="missed the return"):
        exit_of(event("drain"), event("release_pages", nr=3))


def test_preemption_is_a_switch_of_the_thread_that_could_run_on():
    stream = [
        event(ENTRY, mm=1),
        event("sched_switch", prev_state=0),
        event("sched_switch", pid=1, prev_state=0),
        event("sched_switch", prev_state=1),
        event("sched_switch", prev_state=0x100),
    ]
    assert preemptions(stream, THREAD) == 2


# ---------------------------------------------------------------------- what is counted


def test_calls_of_v6_1():
    found = exit_of(
        *(event("rmap_page", compound=0) for _ in range(3)),
        event("rmap_page", compound=1),
        event("deferred_split"),
        event("pte_table"),
        event("pmd_table"),
        event("free_calls", nr=8),
        event("swapcache_check"),
        event("swapcache_delete"),
        event("release_pages", nr=8),
    )
    assert (found["rmap_calls"], found["rmap_pages"], found["pmd_mappings"]) == (3, 3, 1)
    assert (found["page_tables"], found["deferred_split_calls"]) == (2, 1)
    assert (found["swapcache_checks"], found["swapcache_frees"]) == (1, 1)
    assert (found["free_calls"], found["release_calls"], found["release_entries"]) == (1, 1, 8)


def test_calls_of_mainline():
    found = exit_of(
        event("rmap_ptes", nr=16),
        event("rmap_ptes", nr=1),
        event("rmap_pmd"),
        event("swap_entries", nr=5),
        event("free_calls", nr=12),
        event("folios_put_refs", nr=31),
        event("folios_put_refs", nr=2),
    )
    assert (found["rmap_calls"], found["rmap_pages"], found["pmd_mappings"]) == (2, 17, 1)
    assert (found["swap_entries"], found["gather_slots"]) == (5, 12)
    assert (found["release_calls"], found["release_entries"]) == (2, 33)


def test_emptied_batches_are_not_the_teardowns_work():
    found = exit_of(
        event("drain"),
        event("folios_put_refs", nr=15),
        event("mlock_drain"),
        event("release_pages", nr=3),
        event("mlock_drained"),
        event("release_pages", nr=4),
        event("drained"),
        event("folios_put_refs", nr=2),
    )
    assert (found["release_calls"], found["release_entries"]) == (1, 2)


def test_page_frees_stay_wherever_they_happen():
    stream = [event("drain"), event("mm_page_free", pfn=1), event("folios_put_refs", nr=1), event("drained")]
    assert names(calls.without_drains(stream)) == ["mm_page_free"]


def test_folios_dropped_at_their_swap_entry_are_not_the_gathers():
    found = exit_of(
        event("swap_entries"),
        event("swapcache_delete"),
        event("swap_entries"),
        event("swapcache_delete"),
        event("rmap_page", compound=0),
        event("swapcache_delete"),
    )
    assert (found["swap_entries"], found["swapcache_frees"]) == (2, 1)


def test_huge_pages_of_hugetlb_are_no_pmd_mappings():
    found = exit_of(
        event("rmap_page", compound=1),
        event("hugetlb"),
        event("rmap_page", compound=1),
        event("free_calls", nr=8),
        event("hugetlb_done"),
    )
    assert (found["pmd_mappings"], found["free_calls"]) == (1, 1)


def test_flushes_are_those_that_release_something():
    pieces = [event("free_calls", nr=8), event("tlb_flush_mmu"), event("free_calls", nr=7)]
    found = exit_of(*pieces, event("free_calls", nr=510), event("tlb_flush_mmu"), event("tlb_flush_mmu"))
    assert (found["gather_flushes"], found["free_calls"], found["gather_slots"]) == (2, 3, 525)
    found = exit_of(*pieces, event(FINISH), event("free_calls", nr=1), event("tlb_flush_mmu"))
    assert found["gather_flushes"] == 3


# ---------------------------------------------------------------------- which probes there are

V6_1 = [
    "exit_mmap",
    "tlb_finish_mmu",
    "tlb_flush_mmu",
    "flush_tlb_mm_range",
    "free_pages_and_swap_cache",
    "free_swap_cache",
    "delete_from_swap_cache",
    "release_pages",
    "page_remove_rmap",
    "deferred_split_huge_page",
    "free_swap_and_cache",
    "___pte_free_tlb",
    "___pmd_free_tlb",
    "___pud_free_tlb",
    "free_pages",
    "folio_batch_move_lru",
    "mlock_pagevec",
]


def test_a_counter_counts_only_where_the_kernel_has_its_functions():
    def shown(functions: list[str], arguments: bool = True) -> tuple[str, ...]:
        return calls.shown({probe.event for probe in probes.chosen(functions)}, arguments)

    assert shown(V6_1) == tuple(calls.SHOWN_BY)
    without = shown([name for name in V6_1 if name != "page_remove_rmap"])
    assert set(calls.SHOWN_BY) - set(without) == {"pmd_mappings", "rmap_calls", "rmap_pages"}
    inlined = shown([name for name in V6_1 if name != "folio_batch_move_lru"])
    assert set(calls.SHOWN_BY) - set(inlined) == {"release_calls", "release_entries"}
    assert "rmap_calls" not in shown(V6_1, arguments=False)
    assert "release_calls" in shown(V6_1, arguments=False)
    assert "rmap_calls" in shown([*V6_1, "folio_remove_rmap_ptes"], arguments=False)
    assert shown([name for name in V6_1 if name != "exit_mmap"]) == ()


def test_of_several_functions_the_first_that_is_there_is_probed():
    both = probes.chosen(["free_swap_and_cache", "free_swap_and_cache_nr", "mlock_pagevec"])
    assert [(probe.kind, probe.symbol) for probe in both] == [
        ("p", "free_swap_and_cache_nr"),
        ("p", "mlock_pagevec"),
        ("r", "mlock_pagevec"),
    ]


def test_functions_are_whole_symbols_of_text(tmp_path: Path):
    symbols = tmp_path / "kallsyms"
    symbols.write_text(
        "ffffffff8 T exit_mmap\n0000 t free_swap_cache\n0000 t release_pages.part.0\n"
        "0000 d tlb_finish_mmu\n0000 T free_pages\t[module]\n0000 T page_remove_rmap_extra\n"
    )
    assert probes.functions(kallsyms=symbols) == {"exit_mmap", "free_swap_cache"}


@pytest.mark.parametrize(
    ("machine", "fetched"),
    [
        ("x86_64", ["mm=%di:x64", "nr=+0(%di):u8", "nr=%dx:s32"]),
        ("aarch64", ["mm=%x0:x64", "nr=+0(%x0):u8", "nr=%x2:s32"]),
        ("riscv64", ["", "", ""]),
    ],
)
def test_arguments_are_in_the_registers_of_the_architecture(machine, fetched):
    wanted = ("exit_mmap_entry", "folios_put_refs", "rmap_ptes")
    assert [probe.fetched(machine) for probe in probes.PROBES if probe.event in wanted] == fetched


def test_events_of_one_group_are_removed_and_no_others(tmp_path: Path):
    file = tmp_path / "kprobe_events"
    file.write_text(
        "p:replay_12/free_calls free_pages_and_swap_cache nr=%si:s32\n"
        "r64:replay_12/drained folio_batch_move_lru\np:replay_123/drain folio_batch_move_lru\np:mine/x y\n"
    )
    before = file.read_text()
    restore.remove_probes(file, "replay_12")
    assert file.read_text() == before + "-:replay_12/free_calls\n-:replay_12/drained\n"
