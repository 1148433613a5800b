# SPDX-License-Identifier: Apache-2.0
"""A calibration: measure exits of known memory, fit a cost for each operation, and check the costs on
mixtures.
"""

from __future__ import annotations

import datetime
import itertools
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from replay.cost import calibration as kept
from replay.cost import cases, fit
from replay.cost.measure import Exit, empty_seconds, measure
from replay.errors import ReplayError
from replay.support.thp import THP
from replay.teardown.replayer import run
from replay.teardown.variants import one
from replay.validate.predict import algorithm_of
from replay.validate.watch import shown_here


class Calibrated(NamedTuple):
    """A finished calibration.

    errors: relative errors of the held-out exits, in their order.
    """

    calibration: kept.Calibration
    exits: list[Exit]
    held_out: list[Exit]
    errors: npt.NDArray[np.float64]


def calibrate(
    *, runs: int = 6, algorithm: str | None = None, progress: Callable[[int, int], None] | None = None
) -> Calibrated:
    """Measure and fit.

    runs: how often each process is measured. algorithm: the one that this kernel runs; None finds it out. THP
    switches are changed meanwhile and put back. Raises `ReplayError` without the rights to capture a process.
    """
    check_rights()
    algorithm = one(algorithm).name if algorithm else algorithm_of(shown_here()).name
    sizes, orders = cases.scale(), offered_orders()
    training, held_out = cases.training(sizes, orders), cases.held_out(sizes, orders)
    total = (len(training) + len(held_out)) * runs
    count = itertools.count(1)

    def done() -> None:
        if progress:
            progress(next(count), total)

    with tempfile.TemporaryDirectory(prefix="replay-calibrate-", dir=file_folder()) as folder:
        path = Path(folder) / "pages"
        # zeros, but in the page cache, because they were written
        with path.open("wb") as file:
            for _ in range(cases.FILE_MIB):
                file.write(bytes(1 << 20))
        empty = empty_seconds(path, 2 * runs + 1)
        measured = measure([*training, *held_out], path, runs, empty, done)
    exits, checks = measured[: len(training)], measured[len(training) :]
    names = kept.FEATURES
    costs = fit.fit(names, features(exits, algorithm), least(exits))
    errors = fit.relative_errors(costs, names, features(checks, algorithm), least(checks))
    calibration = kept.of_costs(
        costs,
        machine=kept.machine(),
        kernel=os.uname().release,
        algorithm=algorithm,
        error_median=float(np.median(errors)),
        error_high=float(np.percentile(errors, 90)),
        exits=len(exits),
        held_out=len(checks),
        measured_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    return Calibrated(calibration, exits, checks, errors)


def check_rights() -> None:
    """Raise `ReplayError` without the rights to capture a process and to change settings."""
    if os.geteuid():
        raise ReplayError("calibrate captures processes and changes THP settings: run it as root")


def offered_orders() -> list[int]:
    """Orders of anonymous folios that the kernel has a switch for."""
    sizes = (re.fullmatch(r"hugepages-(\d+)kB", folder.name) for folder in THP.glob("hugepages-*kB"))
    page = os.sysconf("SC_PAGE_SIZE")
    return sorted((int(size[1]) * 1024 // page).bit_length() - 1 for size in sizes if size)


def file_folder() -> str:
    """A folder on a disk, /var/tmp: pages of its files are in the page cache and are not shmem."""
    return "/var/tmp" if Path("/var/tmp").is_dir() else tempfile.gettempdir()


def features(exits: list[Exit], algorithm: str) -> npt.NDArray[np.float64]:
    """The columns of `FEATURES` for each exit: float64, shape (exits, features)."""
    rows = [kept.matrix(run(found.trace, [algorithm]), kept.of_rows(found.trace.frame)) for found in exits]
    return np.concatenate(rows)


def least(exits: list[Exit]) -> npt.NDArray[np.float64]:
    """The time of each exit, in seconds."""
    return np.array([found.least for found in exits])
