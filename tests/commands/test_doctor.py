# SPDX-License-Identifier: Apache-2.0
"""`replay doctor`: a line for each check, and the same as JSON."""

from __future__ import annotations

import json

from replay.doctor import State, _failed, _sizes_on
from replay.errors import ReplayError
from tests.commands.running import call


def test_sizes_that_inherit_say_what() -> None:
    sizes = {f"hugepages-{size}kB/enabled": "never" for size in (16, 64, 2048)}
    assert _sizes_on(sizes, "always") == "3 sizes; enabled: none"
    sizes |= {"hugepages-64kB/enabled": "always", "hugepages-2048kB/enabled": "inherit"}
    assert _sizes_on(sizes, "madvise") == "3 sizes; enabled: 64kB (always), 2048kB (inherit, so madvise)"


def test_a_check_that_an_error_ended_has_one_remedy() -> None:
    check = _failed("kpageflags", ReplayError("no right to read x: run replay as root"), "; or not")
    assert (check.found, check.remedy) == ("no right to read x", "run replay as root; or not")
    check = _failed("kpageflags", ReplayError("cannot read x: Input/output error"))
    assert check.found == "cannot read x: Input/output error" and "as root" in check.remedy


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
