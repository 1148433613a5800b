# SPDX-License-Identifier: Apache-2.0
"""THP switches: what they say, and that whoever changes them is alone."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from replay.errors import ReplayError
from replay.support import thp


@pytest.mark.parametrize(
    ("text", "said"),
    [("always [madvise] never\n", "madvise"), ("[always] never", "always"), ("511\n", "511"), ("", "")],
)
def test_what_a_switch_says(text: str, said: str) -> None:
    assert thp.selected(text) == said


def hold(lock: Path, shared: bool, held: multiprocessing.Queue, end: multiprocessing.Queue) -> None:
    thp.LOCK = lock  # type: ignore[misc]
    with thp.locked(shared=shared):
        held.put(True)
        end.get()


@pytest.mark.parametrize(
    ("theirs", "ours", "waits"), [(1, 1, False), (1, 0, True), (0, 1, True), (0, 0, True)]
)
def test_who_changes_is_alone(
    theirs: bool, ours: bool, waits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thp, "LOCK", tmp_path / "lock")
    monkeypatch.setattr(thp, "LOCK_SECONDS", 0.2)
    spawn = multiprocessing.get_context("spawn")
    held, end = spawn.Queue(), spawn.Queue()
    other = spawn.Process(target=hold, args=(tmp_path / "lock", bool(theirs), held, end))
    other.start()
    held.get(timeout=60)
    try:
        if waits:
            with pytest.raises(ReplayError, match="wait for it to end"), thp.locked(shared=bool(ours)):
                pass
        else:
            with thp.locked(shared=bool(ours)):
                pass
    finally:
        end.put(True)
        other.join(60)
    with thp.locked():
        assert (tmp_path / "lock").exists()
