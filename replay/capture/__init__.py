"""Capture: from a process to a trace. `replay.capture(pid)` captures one process."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replay.trace.frame import Trace


class _CallableModule(ModuleType):
    # `replay.capture` is both the library's function and the package behind it: a module whose class has
    # __call__ is the way to be both, and to load polars and pyarrow only when something is captured.
    def __call__(self, pid: int, **options: Any) -> Trace:
        """Capture a process into memory; options as of `replay.capture.live.capture_process`."""
        from replay.capture.live import capture_process

        trace = capture_process(pid, **options).trace
        assert trace is not None
        return trace


sys.modules[__name__].__class__ = _CallableModule
