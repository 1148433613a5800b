"""replay: how Linux tears down a process's memory, replayed over page-table dumps of real processes.

trace = replay.capture(pid)
replay.run(trace, algorithms=["baseline", "v2"])
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

__all__ = ["capture", "read", "run"]

if TYPE_CHECKING:
    from replay import capture
    from replay.teardown.replayer import run
    from replay.trace.file import read


def __getattr__(name: str) -> Any:
    """Load the library's functions when they are first used: importing polars and numba is slow."""
    import importlib

    if name == "capture":
        return importlib.import_module("replay.capture")
    if name == "read":
        return importlib.import_module("replay.trace.file").read
    if name == "run":
        return importlib.import_module("replay.teardown.replayer").run
    raise AttributeError(f"module 'replay' has no attribute '{name}'")
