# SPDX-License-Identifier: Apache-2.0
"""Bits of a `/proc/kpageflags` word that replay looks at.

Numbers from include/uapi/linux/kernel-page-flags.h; the meaning of overloaded bits from
fs/proc/page.c, stable_page_flags().
"""

from __future__ import annotations

from typing import Final

KPF_DIRTY: Final = 4
KPF_LRU: Final = 5
KPF_ANON: Final = 12
KPF_SWAPCACHE: Final = 13
KPF_SWAPBACKED: Final = 14
KPF_COMPOUND_HEAD: Final = 15
KPF_COMPOUND_TAIL: Final = 16
KPF_HUGE: Final = 17
KPF_NOPAGE: Final = 20
KPF_KSM: Final = 21
KPF_THP: Final = 22
KPF_ZERO_PAGE: Final = 24
KPF_IDLE: Final = 25
KPF_MLOCKED: Final = 33


def bit(number: int) -> int:
    """The mask of one flag."""
    return 1 << number


FOLIO_FLAGS: Final = bit(KPF_ANON) | bit(KPF_SWAPCACHE) | bit(KPF_HUGE)
"""Flags that all rows of a folio have alike: the replay goes by them."""
