# SPDX-License-Identifier: Apache-2.0
"""Run a program of scripts/ in the project's virtual environment, whatever Python it was started with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
"""The checkout: what a program imports is found from here."""


def enter(*extras: str) -> None:
    """Start the program again with `.venv/bin/python`, after `scripts/setup EXTRA...`; do nothing inside it.

    The checkout comes first on the module path, so that `replay` and the packages of scripts/ are this
    checkout's. The program ends with status 1 where the environment cannot be made; setup says why.
    """
    sys.path[:0] = [str(ROOT)]
    environment = ROOT / ".venv"
    if Path(sys.prefix).resolve() == environment.resolve():
        return
    if subprocess.run([ROOT / "scripts" / "setup", *extras], check=False).returncode:
        sys.exit(1)
    python = str(environment / "bin" / "python")
    os.execv(python, [python, *sys.argv])
