# SPDX-License-Identifier: Apache-2.0
"""What commands print, and how: notes, tables, progress. Data go to standard output, the rest elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

import typer

from replay.support.text import printable

if TYPE_CHECKING:
    from replay.report.terminal import Sheet

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Parameters of mallopt(), from malloc.h."""

WIDE: Final = 400
"""Columns that are enough for any table."""

HEIGHT: Final = 25
"""Any height will do. With one, rich accepts our width on a dumb terminal too."""


def note(*lines: str) -> None:
    """Print lines for people on standard error. Where they cannot be written, they are dropped, and the
    command goes on.
    """
    for line in lines:
        try:
            typer.echo(printable(line), err=True)
        except OSError:
            # the disk is full, or nobody reads the pipe: Python would fail again when it flushes at exit
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - open until the process ends
            return


def load_numpy() -> None:
    """Load NumPy without the threads of its BLAS, and tune malloc.

    The threads would only spin. The environment stays as it was, because recorded commands inherit it.
    """
    name = "OPENBLAS_NUM_THREADS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    import numpy  # noqa: F401

    del os.environ[name]
    if before is not None:
        os.environ[name] = before
    _tune_malloc()


def _tune_malloc() -> None:
    """Let malloc keep freed memory for all threads: the kernel would have to clear it again."""
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        for parameter, value in ((M_ARENA_MAX, 1), (M_MMAP_THRESHOLD, 32 << 20), (M_TRIM_THRESHOLD, 1 << 30)):
            mallopt(parameter, value)


@contextlib.contextmanager
def progress(unit: str) -> Iterator[Any]:
    """A progress bar on a terminal, from one second on; yields a function of (done, total), or None."""
    if not sys.stderr.isatty():
        yield None
        return
    import time

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    began = time.monotonic()
    bar = Progress(
        TextColumn("{task.fields[unit]}"), BarColumn(), MofNCompleteColumn(), console=Console(stderr=True)
    )
    task = bar.add_task("", unit=unit, total=None)

    def report(done: int, total: int | None) -> None:
        if time.monotonic() - began > 1:
            bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield report
    finally:
        bar.stop()


def width() -> int:
    """Columns of the terminal. Without a terminal, more than any table needs."""
    import shutil

    # not rich's width: a terminal of TERM=dumb has 80 columns to it
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDE


def show(renderables: list[Any], columns: int) -> None:
    """Print tables as they are: names in them may hold anything, so no markup is interpreted."""
    from rich.console import Console

    class Output(Console):
        """Standard output. A reader that has seen enough ends the command as any other write does."""

        def on_broken_pipe(self) -> None:
            """Pass the error on: rich would end with status 1."""
            raise

    console = Output(width=columns, height=HEIGHT, markup=False, emoji=False, highlight=False)
    for renderable in renderables:
        console.print(renderable)


def show_markdown(sheets: Iterable[Sheet]) -> None:
    """Print tables as Markdown."""
    from replay.report import terminal

    for sheet in sheets:
        typer.echo(terminal.markdown(sheet))
