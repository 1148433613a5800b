# SPDX-License-Identifier: Apache-2.0
"""A sweep: each trace becomes one part of a result, and what fails becomes a row of failures.csv."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import replay
from replay.errors import ReplayError, TraceError
from replay.fleet import parts, workers
from replay.fleet.sources import Source
from replay.support.atomic_file import atomic_file

FAILURES: Final = "failures.csv"


class Swept(NamedTuple):
    """A finished sweep. traces, extents: of the parts made now; skipped: parts that were there."""

    traces: int
    skipped: int
    extents: int
    failures: dict[str, str]


def options_text(algorithms: Sequence[Mapping[str, Any]] | None, page_tables: str | None) -> str:
    """The options of the replay as text: with its trace, all that a part depends on.

    algorithms: as `variants.encoded` gives them; all if None.
    """
    return json.dumps(
        {"algorithms": algorithms, "page_tables": page_tables, "replay": replay.__version__}, sort_keys=True
    )


def replayed(path: Path, name: str, options: str) -> tuple[Any, int]:
    """One trace -> (the frame of `run_checked`, its extents)."""
    from replay.teardown.layout import ROWS
    from replay.teardown.replayer import replayed_file
    from replay.teardown.variants import chosen, decoded

    given = json.loads(options)
    named = given["algorithms"] and [decoded(fields) for fields in given["algorithms"]]
    found = replayed_file(path, chosen(named, given["page_tables"]), name=name)
    if found.trace.left_out and not found.trace.meta.part:
        # nobody would see the note among thousands of traces
        raise TraceError(f"{name}: {found.trace.notes[0]} by 'replay run'; a sweep leaves it out")
    assert found.figures is not None
    return found.results, int(found.figures[:, ROWS].sum())


def sweep(
    sources: Sequence[Source],
    folder: Path,
    options: str,
    *,
    jobs: int,
    dask: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Swept:
    """Replay the traces whose parts are not in `folder` yet.

    options: of `options_text`. jobs: local worker processes. dask: address of a scheduler, "local" for a
    cluster on this machine, None for plain processes. progress: called with (traces done, extents so far).
    """
    if dask is not None:
        workers.check_address(dask)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReplayError(f"cannot make the folder '{folder}': {error.strerror}") from None
    atomic_file(folder / FAILURES, force=True)
    parts.check_options(folder, sources, options)
    task = workers.Task(replayed, options)
    left = [source for source in sources if not parts.is_finished(folder, source, options)]
    outcomes = workers.local(left, task, jobs) if dask is None else workers.dask(left, task, jobs, dask)
    extents = done = 0
    failures: dict[str, str] = {}
    # without traces no cluster is asked for
    for outcome in outcomes if left else ():
        if outcome.error:
            failures[outcome.source.uri] = outcome.error
            parts.path_of(folder, outcome.source).unlink(missing_ok=True)
        else:
            parts.write(folder, outcome.source, outcome.part)
            done += 1
        extents += outcome.extents
        if progress:
            progress(done + len(failures), extents)
    _write_failures(folder / FAILURES, failures)
    return Swept(done, len(sources) - len(left), extents, dict(sorted(failures.items())))


def _write_failures(path: Path, failures: dict[str, str]) -> None:
    """Write failures.csv, or remove an older one where nothing failed."""
    if not failures:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["trace", "error"])
    writer.writerows(sorted(failures.items()))
    with atomic_file(path, force=True, mode=0o666) as file:
        file.write(text.getvalue().encode(errors="backslashreplace"))
