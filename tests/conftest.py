# SPDX-License-Identifier: Apache-2.0
"""What several folders of tests share; what a live test is."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

LIVE_RERUNS = 2
"""How often a live test is repeated that failed: the running kernel has other users too."""


def why_not_live() -> str:
    """Why live tests cannot run here; empty if they can."""
    if os.geteuid() != 0 or not os.access("/proc/kpageflags", os.R_OK):
        return "page frames are only shown to root of the host"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Live tests are skipped where they cannot run, and only they are repeated."""
    reason = why_not_live()
    for item in items:
        if item.get_closest_marker("live"):
            if reason:
                item.add_marker(pytest.mark.skip(reason=reason))
            item.add_marker(pytest.mark.flaky(reruns=LIVE_RERUNS))


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> str:
    """tests/tree.c, compiled."""
    if not shutil.which("cc"):
        pytest.skip("no C compiler")
    program = tmp_path_factory.mktemp("tree") / "tree"
    source = Path(__file__).with_name("tree.c")
    subprocess.run(["cc", "-pthread", "-w", "-o", program, source], check=True)
    return str(program)
