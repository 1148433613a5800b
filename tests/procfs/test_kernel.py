# SPDX-License-Identifier: Apache-2.0
"""What a trace says of the machine."""

from __future__ import annotations

import os
from pathlib import Path

from replay.procfs import files
from replay.procfs import kernel as tree_settings


def test_architecture_of_a_saved_tree(tmp_path: Path) -> None:
    assert tree_settings.architecture(tmp_path, live=False) == "x86_64"
    (tmp_path / "sys" / "kernel").mkdir(parents=True)
    (tmp_path / "sys" / "kernel" / "arch").write_text("aarch64\n")
    assert tree_settings.architecture(tmp_path, live=False) == "aarch64"
    assert tree_settings.architecture(files.PROC, live=True) == os.uname().machine
