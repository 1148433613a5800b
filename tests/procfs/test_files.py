# SPDX-License-Identifier: Apache-2.0
"""Texts of procfs, field by field."""

from __future__ import annotations

from replay.procfs import files


def test_field() -> None:
    status = "\nName:\tState:\tx\nState:\tS (sleeping)\nVmPTE:\t      40 kB\n"
    assert files.field(status, "Name") == "State:\tx"
    assert files.field(status, "State") == "S (sleeping)"
    assert files.field(status, "VmPTE") == "40 kB"
    assert files.field(status, "VmSwap") == ""
