# SPDX-License-Identifier: Apache-2.0
"""`replay algorithms`: what it lists."""

from __future__ import annotations

import json

from replay.teardown.algorithms import ALGORITHMS
from replay.teardown.counters import COUNTERS
from tests.commands.running import call


def test_algorithms():
    text = call("algorithms").stdout
    for name in ALGORITHMS:
        assert f"\n{name}: " in f"\n{text}"
    assert "20230830095011.1228673-1-ryan.roberts@arm.com" in text
    assert "Not modelled" in text
    assert "    stands for: v6.9 to v6.13; v6.12 was traced\n" in text
    document = json.loads(call("algorithms", "--json").stdout)
    assert list(document["counters"]) == list(COUNTERS)
    stands = {algorithm["name"]: algorithm["stands for"] for algorithm in document["algorithms"]}
    assert {name for name, kernels in stands.items() if kernels} == {
        name for name, algorithm in ALGORITHMS.items() if algorithm.since is not None
    }
