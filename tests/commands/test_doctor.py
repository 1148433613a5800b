# SPDX-License-Identifier: Apache-2.0
"""`replay doctor`: a line for each check, and the same as JSON."""

from __future__ import annotations

import json

from replay.doctor import State
from tests.commands.running import call


def test_what_it_says() -> None:
    document = json.loads(call("doctor", "--json").stdout)
    assert {check["state"] for check in document} <= set(State)
    assert {"pagemap", "kpageflags", "kpagecount", "ptrace", "compiled code"} <= {
        check["name"] for check in document
    }
    failed = [check for check in document if check["state"] == State.FAILS]
    assert all(check["remedy"] for check in failed)
    done = call("doctor")
    assert done.returncode == bool(failed)
    assert done.stdout.startswith("Linux ")
    assert [check["name"] for check in document if check["name"] not in done.stdout] == []
