# SPDX-License-Identifier: Apache-2.0
"""Runs of pagemap words, and where ranges overlap, against loops that say the same."""

from __future__ import annotations

from random import Random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.capture import runs
from tests.capture.trees import EXCLUSIVE, PRESENT, SWAP


def made_up(seed: int) -> tuple[list[int], list[list[int]], list[int]]:
    """First pages of spans, their words, first pages of VMAs."""
    random = Random(seed)
    firsts, spans, vmas = [], [], [0]
    vpn, word = random.randrange(5), PRESENT | 100
    for _ in range(random.randint(1, 5)):
        firsts.append(vpn)
        span = []
        for _ in range(random.randint(0, 12)):
            choice = random.random()
            if choice < 0.6:
                word += 1 if word >= PRESENT else 1 << 5
            elif choice < 0.7:
                word = PRESENT | random.randrange(50) | random.choice([0, EXCLUSIVE])
            elif choice < 0.8:
                word = SWAP | random.randrange(50) << 5 | random.randrange(2)
            span.append(0 if choice > 0.9 else word)
            if random.random() < 0.1:
                vmas.append(vpn + len(span))
        spans.append(span)
        vpn += len(span)
        if random.random() < 0.6:
            vpn += random.randint(1, 4)
            vmas += [vpn] if random.random() < 0.5 else []
    return firsts, spans, vmas


def literal(firsts: list[int], spans: list[list[int]], vmas: list[int]) -> list[tuple[int, int, int, int]]:
    found: list[tuple[int, int, int, int]] = []
    for first, words in zip(firsts, spans, strict=True):
        before = 0
        for vpn, word in enumerate(words, first):
            step = 1 if word >= PRESENT else 1 << 5
            goes_on = vpn > first and before and word == before + step
            if goes_on and word and vpn not in vmas:
                start, value, pages, vma = found[-1]
                found[-1] = start, value, pages + 1, vma
            elif word:
                found.append((vpn, word, 1, sum(vma <= vpn for vma in vmas) - 1))
            before = word
    return found


@settings(max_examples=500, deadline=None)
@given(st.integers(0, 1 << 32))
def test_runs_of_spans(seed: int) -> None:
    firsts, spans, vmas = made_up(seed)
    words = np.array([word for span in spans for word in span], np.uint64)
    sizes = np.array([len(span) for span in spans])
    found = runs.runs_of(np.array(firsts), sizes, words, np.array(sorted(set(vmas))))
    columns = (column.tolist() for column in found)
    assert list(zip(*columns, strict=True)) == literal(firsts, spans, sorted(set(vmas)))


ranges = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 6)), max_size=12)


@settings(max_examples=500, deadline=None)
@given(ranges, st.integers(1, 3))
def test_cover(some: list[tuple[int, int]], least: int) -> None:
    starts = np.array([start for start, _ in some], np.int64)
    ends = np.array([start + size for start, size in some], np.int64)
    found = list(zip(*(column.tolist() for column in runs.cover(starts, ends, least)), strict=True))
    depth = [sum(start <= point < start + size for start, size in some) for point in range(48)]
    covered = {point: many for start, end, many in found for point in range(start, end)}
    assert covered == {point: many for point, many in enumerate(depth) if many >= least}
    assert found == sorted(found)
