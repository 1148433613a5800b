# SPDX-License-Identifier: Apache-2.0
"""The result of a calibration, kept for each machine and kernel, and the times that it gives for counts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from replay.cost.fit import Costs
from replay.errors import ReplayError
from replay.support.atomic_file import atomic_file
from replay.teardown.layout import DIRTY_PTES, LARGE_ROWS, ROWS, VMAS

FEATURES: Final = (
    "ptes",
    "rmap_calls",
    "folios_freed",
    "pages_freed",
    "pmd_mappings",
    "vmas",
    "page_tables",
    "extents",
    "large_extents",
    "dirty_ptes",
)
"""What time is made of: counters, `vmas` (those with pages), `extents` (the rows of the trace), `dirty_ptes`.

A new extent begins where the next page is not in the next frame. There the processor cannot fetch the page
structure ahead, and waits for memory. `large_extents` are those of folios above order 0, which take longer to
unmap and to free under every algorithm. A dirty PTE of a file makes zap_present_folio_ptes() mark the folio
dirty. The data decide which columns can be told apart.
"""

NO_COUNTERS: Final = {
    "vmas": "VMAs with pages",
    "extents": "rows of the trace",
    "large_extents": "rows of the trace in folios above order 0",
    "dirty_ptes": "dirty PTEs of files",
}
"""Those of `FEATURES` that are no counters, in words."""

UNSEEN: Final = (
    "the memory controller, other NUMA nodes, the zeroing of freed pages (init_on_free), swap devices, "
    "the freeing of shmem files with their last user, other work of the machine"
)
"""What the costs leave out."""

VERSION: Final = 2


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Costs in seconds per operation, the algorithm under which they were measured, and their error.

    error_median, error_high: median and 90th percentile of |estimate - measured| / measured over held-out
    exits.
    """

    machine: str
    kernel: str
    algorithm: str
    costs: dict[str, float]
    low: dict[str, float]
    high: dict[str, float]
    error_median: float
    error_high: float
    exits: int
    held_out: int
    measured_at: str
    version: int = VERSION


def of_costs(costs: Costs, **values: Any) -> Calibration:
    """A `Calibration` of what `fit.fit` found."""
    middle, low, high = (
        dict(zip(costs.names, map(float, column), strict=True))
        for column in (costs.costs, costs.low, costs.high)
    )
    return Calibration(costs=middle, low=low, high=high, **values)


def machine() -> str:
    """A word for this machine: a digest of its id, which hides the id, or its host name."""
    try:
        identity = Path("/etc/machine-id").read_text().strip()
    except OSError:
        identity = ""
    return hashlib.sha256((identity or os.uname().nodename).encode()).hexdigest()[:12]


def priced(found: Calibration) -> str:
    """Which operations have a cost, without a full stop at the end."""
    names = [
        f"{name} ({NO_COUNTERS[name]})" if name in NO_COUNTERS else name
        for name, cost in found.costs.items()
        if cost > 0
    ]
    return (
        f"Only these have a cost: {', '.join(names)}. Algorithms that differ only in other counters get the "
        "same estimate"
    )


OFF_FOR_PROGRAMS: Final = "5 to 40 %, nearly always too low"
"""How far estimates were off in the median for Redis, a JVM, Node.js and NumPy: `scripts/bench_time`."""


def off(found: Calibration) -> str:
    """How far estimates were off, without a full stop at the end."""
    return (
        f"{100 * found.error_median:.0f} % off in the median over exits of test processes, "
        f"{100 * found.error_high:.0f} % or more for one in ten of them; real programs: {OFF_FOR_PROGRAMS}"
    )


def path_here() -> Path:
    """The file of the calibration of this machine and kernel."""
    import platformdirs

    name = f"calibration-{machine()}-{os.uname().release}.json"
    return Path(platformdirs.user_data_dir("replay", appauthor=False)) / name


def target(path: Path | None) -> Path:
    """Where a calibration is written: the file itself, or that of this machine and kernel, with its folder.

    Raises `ReplayError`, before any work is done, if it cannot be written there.
    """
    found = path or path_here()
    try:
        if path is None:
            found.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ReplayError(f"cannot make the folder '{found.parent}': {error.strerror}") from None
    atomic_file(found, force=True)
    return found


def write(calibration: Calibration, path: Path) -> None:
    """Write a calibration to a file."""
    with atomic_file(path, force=True) as file:
        file.write(json.dumps(dataclasses.asdict(calibration), indent=1).encode())


def read(path: Path | None = None) -> Calibration:
    """Read the calibration of a file, or that of this machine and kernel.

    Raises `ReplayError` if there is none or it is damaged. Without a file name it also raises if the
    calibration is of another kernel.
    """
    found = path or path_here()
    try:
        calibration = Calibration(**json.loads(found.read_bytes()))
        if calibration.version != VERSION or not calibration.costs:
            raise ValueError("another version")
    except FileNotFoundError:
        others = sorted(found.parent.glob(f"calibration-{machine()}-*.json")) if found.parent.is_dir() else []
        hint = f" ('{others[0].name}' is of another kernel)" if others and path is None else ""
        what = "of this machine and kernel" if path is None else f"'{found}'"
        raise ReplayError(
            f"no calibration {what}{hint}: make one with 'replay calibrate', which takes a few minutes"
        ) from None
    except (OSError, ValueError, TypeError) as error:
        raise ReplayError(
            f"'{found}' is no calibration ({error}): make it again with 'replay calibrate'"
        ) from None
    return calibration


def of_rows(rows: pl.DataFrame) -> pl.DataFrame:
    """What else an address space has that takes time: `mm`, and the `FEATURES` that are no counters.

    rows: of a trace.
    """
    return (
        rows.lazy()
        .group_by("mm")
        .agg(
            vmas=pl.col("vma").n_unique().cast(pl.Int64),
            extents=pl.len().cast(pl.Int64),
            large_extents=(pl.col("order") > 0).cast(pl.Int64).sum(),
            dirty_ptes=pl.col("pages").filter("dirty").cast(pl.Int64).sum(),
        )
        .sort("mm")
        .collect()
    )


def of_figures(figures: npt.NDArray[np.int64]) -> pl.DataFrame:
    """As `of_rows`, of the figures of a replay (see `layout.py`)."""
    numbers = np.arange(len(figures), dtype=np.uint32)
    return pl.DataFrame(
        {
            "mm": numbers,
            "vmas": figures[:, VMAS],
            "extents": figures[:, ROWS],
            "large_extents": figures[:, LARGE_ROWS],
            "dirty_ptes": figures[:, DIRTY_PTES],
        }
    )


def matrix(results: pl.DataFrame, of_each: pl.DataFrame) -> npt.NDArray[np.float64]:
    """The columns of `FEATURES` for each row of a result: float64, shape (rows, features).

    results: of `replay.run` over one trace; of_each: of `of_rows`.
    """
    joined = results.select("mm", *(name for name in FEATURES if name in results.columns)).join(
        of_each, on="mm", how="left", maintain_order="left"
    )
    return np.asarray(joined.select(FEATURES).fill_null(0).to_numpy(), np.float64)


def seconds(results: pl.DataFrame, of_each: pl.DataFrame, found: Calibration) -> npt.NDArray[np.float64]:
    """Estimated seconds of each row of a result: float64, shape (rows,). Arguments as of `matrix`."""
    costs = np.array([found.costs.get(name, 0.0) for name in FEATURES])
    return np.asarray(matrix(results, of_each) @ costs)


def total_seconds(parts: Iterable[tuple[pl.DataFrame, pl.DataFrame]], found: Calibration) -> dict[str, float]:
    """Estimated seconds of each algorithm over all address spaces of some traces.

    parts: for each trace its results and what `of_rows` or `of_figures` says of it.
    """
    totals: dict[str, float] = {}
    for results, of_each in parts:
        estimated = seconds(results, of_each, found).tolist()
        for name, value in zip(results["algorithm"], estimated, strict=True):
            totals[name] = totals.get(name, 0.0) + value
    return totals
