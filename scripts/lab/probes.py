"""What is traced in the guest, and where in the arguments the interesting words are (x86-64 calls).

A probe of one event may have several symbols: the first that the kernel has counts. Fetch arguments are
those of kprobe events: `%di` is the first argument, `%si` the second.
"""

from typing import NamedTuple


class Probe(NamedTuple):
    """One line for the guest: kprobe (`p`), return probe (`r`) or tracepoint (`t`, `event` is its group)."""

    kind: str
    event: str
    symbol: str
    args: str = ""


# Bytes from a large folio's first struct page (64 bytes each) to its deferred split list: in the third page,
# behind flags and two words of padding (v6.1), or behind flags and compound_head (v6.12).
DEFERRED_LIST = {"deferred_split_huge_page": 152, "deferred_split_folio": 144}

PROBES = (
    Probe("p", "exit_mmap", "exit_mmap", "mm=%di:x64"),
    Probe("p", "tlb_finish", "tlb_finish_mmu"),
    Probe("r", "tlb_finished", "tlb_finish_mmu"),
    Probe("p", "tlb_flush_mmu", "tlb_flush_mmu"),
    Probe("p", "flush_range", "flush_tlb_mm_range", "mm=%di:x64"),
    Probe("p", "free_calls", "free_pages_and_swap_cache", "nr=%si:s32"),
    Probe("p", "swapcache_check", "free_swap_cache", "page=%di:x64"),
    Probe("p", "swapcache_delete", "delete_from_swap_cache", "page=%di:x64"),
    Probe("p", "release_pages", "release_pages", "nr=%si:s32"),
    Probe("p", "folios_put_refs", "folios_put_refs", "nr=+0(%di):u8"),
    Probe("p", "rmap_page", "page_remove_rmap", "page=%di:x64 compound=%dx:u8"),
    Probe("p", "rmap_ptes", "folio_remove_rmap_ptes", "page=%si:x64 nr=%dx:s32"),
    Probe("p", "rmap_pmd", "folio_remove_rmap_pmd", "folio=%di:x64"),
    Probe("p", "deferred_split", "deferred_split_huge_page", "page=%di:x64 next=+152(%di):x64"),
    Probe("p", "deferred_split", "deferred_split_folio", "page=%di:x64 next=+144(%di):x64"),
    Probe("p", "split_dequeue", "free_transhuge_page", "page=%di:x64 next=+152(%di):x64"),
    Probe("p", "split_dequeue", "__folio_unqueue_deferred_split", "page=%di:x64 next=+144(%di):x64"),
    Probe("p", "split_dequeue", "__folio_undo_large_rmappable", "page=%di:x64 next=+144(%di):x64"),
    Probe("p", "lruvec_lock", "folio_lruvec_lock_irqsave", "page=%di:x64"),
    Probe("p", "swap_entries", "free_swap_and_cache_nr", "nr=%si:s32"),
    Probe("p", "swap_entries", "free_swap_and_cache", "entry=%di:x64"),
    Probe("p", "pte_table", "___pte_free_tlb"),
    Probe("p", "pmd_table", "___pmd_free_tlb"),
    Probe("p", "pud_table", "___pud_free_tlb"),
    Probe("p", "free_pages", "free_pages", "order=%si:u32"),
    Probe("p", "huge_free", "free_huge_folio", "page=%di:x64"),
    Probe("p", "huge_free", "free_huge_page", "page=%di:x64"),
    Probe("p", "drain", "folio_batch_move_lru"),
    Probe("r", "drained", "folio_batch_move_lru"),
    Probe("p", "mlock_drain", "mlock_folio_batch"),
    Probe("p", "mlock_drain", "mlock_pagevec"),
    Probe("r", "mlock_drained", "mlock_folio_batch"),
    Probe("r", "mlock_drained", "mlock_pagevec"),
    Probe("p", "resched", "schedule"),
    Probe("p", "walk_mm", "walk_page_range", "mm=%di:x64"),
    Probe("t", "kmem", "mm_page_free"),
)


def lines(probes: tuple[Probe, ...] = PROBES) -> str:
    """The text that the guest's init reads."""
    return "".join(" ".join(probe).rstrip() + "\n" for probe in probes)
