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
"""Of malloc.h."""

WIDE: Final = 400
"""Columns that are room enough for any table."""

HEIGHT: Final = 25
"""Nothing depends on it, but only with one does rich take the width of a dumb terminal as it is given."""


def note(*lines: str) -> None:
    """Lines for people, on standard error. They decide nothing: where nobody can read them, they are lost."""
    for line in lines:
        try:
            typer.echo(printable(line), err=True)
        except OSError:
            # a full disk, or a pipe whose reader has ended: what is buffered would fail again at the end
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123 - open until the process ends
            return


def load_numpy() -> None:
    """Load NumPy, with one arena of memory, without the threads of its BLAS, which at first just spin.

    The environment stays as it is: recorded commands inherit it.
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
    """Memory that is freed serves again, and any thread; given back, it would have to be cleared anew."""
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
    """Columns of the terminal; without one, as many as a table takes."""
    import shutil

    # not rich's width: a terminal of TERM=dumb has 80 columns to it
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDE


def show(renderables: list[Any], columns: int) -> None:
    """Print as it is what may hold names of anybody."""
    from rich.console import Console

    console = Console(width=columns, height=HEIGHT, markup=False, emoji=False, highlight=False)
    for renderable in renderables:
        console.print(renderable)


def show_markdown(sheets: Iterable[Sheet]) -> None:
    """Print tables as Markdown."""
    from replay.report import terminal

    for sheet in sheets:
        typer.echo(terminal.markdown(sheet))
