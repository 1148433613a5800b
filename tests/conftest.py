"""What several folders of tests share."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> str:
    """tests/tree.c, compiled."""
    if not shutil.which("cc"):
        pytest.skip("no C compiler")
    program = tmp_path_factory.mktemp("tree") / "tree"
    source = Path(__file__).with_name("tree.c")
    subprocess.run(["cc", "-pthread", "-w", "-o", program, source], check=True)
    return str(program)
