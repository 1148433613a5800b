# SPDX-License-Identifier: Apache-2.0
"""A procfs tree held open: `/proc`, another machine's or container's, or a saved one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

from replay.procfs import files, kernel, own_page

READERS: Final = 4
"""Threads: at most one reads ahead, with another's help, one looks for the second time, one loads pyarrow."""


class Inline(Executor):
    """Runs what is submitted at once, by the caller."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


INLINE: Final = Inline()


class Tree(NamedTuple):
    """An open procfs tree, with threads: `pool` to read, `writer`, one thread, to emit. See `opened`.

    memcg_fd: kpagecgroup, -1 where there is none.
    """

    root: Path
    live: bool
    page_size: int
    flags_fd: int
    counts_fd: int
    memcg_fd: int
    saved_frames: int | None
    mapcounts: str
    pool: Executor
    writer: Executor


@contextlib.contextmanager
def opened(root: Path, pid: int) -> Iterator[Tree]:
    """Open kpageflags and kpagecount of a tree; `pid` is a process by which a saved tree's page size is told.

    Raises `ReplayError` if there is no such tree, no such process, no right to read them, or if a live one
    says something else of a page of ours than what is known of it.
    """
    live = files.is_live(root)
    with contextlib.ExitStack() as stack:
        page_size = files.base_page_size(root, pid)
        flags_fd = files.open_kpage(root, "kpageflags")
        stack.callback(os.close, flags_fd)
        counts_fd = files.open_kpage(root, "kpagecount")
        stack.callback(os.close, counts_fd)
        memcg_fd = _open_memcg(root)
        if memcg_fd >= 0:
            stack.callback(os.close, memcg_fd)
        if live:
            with own_page.own_frame() as frame:
                own_page.check_kpage(flags_fd, root / "kpageflags", frame)
                own_page.check_kpage(counts_fd, root / "kpagecount", frame)
                if memcg_fd >= 0 and not os.pread(memcg_fd, 8, frame * 8):
                    memcg_fd = -1
        saved = min(files.saved_words(fd) or 0 for fd in (flags_fd, counts_fd))
        pool = stack.enter_context(ThreadPoolExecutor(READERS, "replay-read"))
        writer = stack.enter_context(ThreadPoolExecutor(1, "replay-write"))
        yield Tree(
            root=root,
            live=live,
            page_size=page_size,
            flags_fd=flags_fd,
            counts_fd=counts_fd,
            memcg_fd=memcg_fd,
            saved_frames=None if live else saved,
            mapcounts=kernel.mapcounts(root),
            pool=pool,
            writer=writer,
        )


def _open_memcg(root: Path) -> int:
    """kpagecgroup as a file descriptor; -1 without CONFIG_MEMCG, or without the right to read it."""
    try:
        return os.open(root / "kpagecgroup", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


@contextlib.contextmanager
def by_task(tree: Tree, pid: int, tid: int) -> Iterator[Tree]:
    """The procfs tree in which `pid` is read through one of its tasks.

    The first task of a process may have ended before the others; its files in /proc are empty then.
    """
    if tid == pid:
        yield tree
        return
    import tempfile

    with tempfile.TemporaryDirectory(prefix="replay-") as folder:
        (Path(folder) / str(pid)).symlink_to(files.PROC / str(pid) / "task" / str(tid))
        yield tree._replace(root=Path(folder))
