# SPDX-License-Identifier: Apache-2.0
"""`replay validate` as a user calls it."""

from __future__ import annotations

import json

from tests.commands.running import call, line
from tests.validate.machine import needs_validate


def test_wrong_usage() -> None:
    assert "leave it out when you give a command" in line(
        call("validate", "--only", "sleep", "--", "true"), 2
    )
    assert "unknown algorithm 'v9'" in line(call("validate", "--algorithm", "v9", "--only", "sleep"), 2)


@needs_validate
def test_one_workload() -> None:
    done = call("validate", "--only", "sleep", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["agrees"] and document["address_spaces"] == 1
    shown = call("validate", "--only", "sleep")
    assert "exits freed the predicted folios in the predicted order" in shown.stdout + shown.stderr
