# SPDX-License-Identifier: Apache-2.0
"""Compiled functions: results as those of plain Python, arguments checked, keys that miss nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replay.errors import ReplayError
from replay.jit import compiled
from replay.procfs import pagemap_words
from replay.teardown import machine
from tests.jit import calls, sums, wrong_call

REPOSITORY = Path(__file__).resolve().parent.parent.parent
jitted = pytest.mark.skipif(
    os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"), reason="nothing is compiled"
)


def arguments(values: list[int], table: npt.NDArray[np.int64]) -> list[Any]:
    return [
        np.array(values, np.int64),
        table,
        np.arange(len(values), dtype=np.int32),
        np.arange(len(values), dtype=np.uint8),
        np.zeros(len(table), np.int64),
    ]


@given(
    st.lists(st.integers(-(2**40), 2**40), max_size=9), st.integers(0, 4), st.integers(0, 4), st.integers()
)
@settings(max_examples=50, deadline=None)
def test_as_plain_python(values: list[int], rows: int, columns: int, seed: int) -> None:
    table = np.random.default_rng(seed % 2**32).integers(-(2**40), 2**40, (rows, columns))
    one, two = arguments(values, table), arguments(values, table)
    assert sums.weighted(*one, seed % 1000) == sums.weighted.python(*two, seed % 1000)
    assert one[4].tolist() == two[4].tolist()


@given(
    st.lists(st.integers(-(2**40), 2**40), max_size=9),
    st.integers(0, 4),
    st.integers(0, 4),
    st.integers(0, 3),
)
@settings(max_examples=50, deadline=None)
def test_a_call_of_another_module_is_as_in_plain_python(
    values: list[int], rows: int, columns: int, first: int
) -> None:
    table = np.random.default_rng(rows).integers(-(2**40), 2**40, (rows, columns))
    one, two = arguments(values, table), arguments(values, table)
    assert calls.weighted_rows(*one, first) == calls.weighted_rows.python(*two, first)
    assert one[4].tolist() == two[4].tolist()


@jitted
def test_a_call_with_an_array_that_the_other_does_not_take_is_refused() -> None:
    arrays = arguments([1, 2], np.zeros((2, 2), np.int64))
    with pytest.raises(ReplayError, match="cannot compile") as caught:
        wrong_call.turned(*arrays)
    assert "\n" not in str(caught.value)


def test_a_key_names_how_functions_of_other_modules_are_called() -> None:
    lines = compiled.content(calls.__name__).splitlines()
    called = [line for line in lines if line.startswith("weighted calls tests.jit.sums.weighted with ")]
    assert len(called) == 1
    assert str(sums.weighted.arguments) in called[0]
    assert compiled.with_callees([calls.__name__]) == [calls.__name__, sums.__name__]


def test_without_jit(tmp_path: Path) -> None:
    """The same functions, nothing compiled, no cache."""
    environment = os.environ | {"NUMBA_DISABLE_JIT": "1", "XDG_CACHE_HOME": str(tmp_path / "none")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.jit.program"],
        env=environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("-252 [109, 136] False\n", "")
    assert not list(tmp_path.iterdir())


@jitted
@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.astype(np.int32),
        lambda a: a.astype(np.uint64),
        lambda a: a.reshape(1, -1),
        lambda a: np.repeat(a, 2)[::2],
        lambda a: a.byteswap().view(a.dtype.newbyteorder()),
        lambda a: a.tolist(),
        lambda a: None,
    ],
    ids=["type", "sign", "dimensions", "order", "byte order", "list", "none"],
)
def test_wrong_arrays_are_refused(change: Callable[[npt.NDArray[np.int64]], Any]) -> None:
    with pytest.raises(TypeError, match="spin: not a 1-d array of int64 in C order"):
        sums.spin(1, change(np.arange(4)))


@jitted
def test_another_number_of_columns_is_refused() -> None:
    pairs = np.arange(6).reshape(3, 2)
    assert calls.products(pairs) == calls.products.python(pairs) == 26
    with pytest.raises(TypeError, match="with 2 columns"):
        calls.products(pairs.reshape(2, 3))


@jitted
def test_wrong_numbers_are_refused() -> None:
    out = np.zeros(1, np.int64)
    with pytest.raises(TypeError, match="takes 2 arguments, not 1"):
        sums.spin(1)
    with pytest.raises(TypeError):
        sums.spin(1.5, out)
    with pytest.raises(OverflowError, match="does not fit into int64"):
        sums.spin(1 << 63, out)
    sums.spin(np.int32(1), out)
    out[0] = 0
    assert out[0] == 0


@jitted
def test_other_threads_run_meanwhile() -> None:
    sums.spin(1, np.zeros(1, np.int64))
    thread = threading.Thread(target=sums.spin, args=(300_000_000, np.zeros(1, np.int64)))
    began = time.perf_counter()
    thread.start()
    steps = 0
    while thread.is_alive():
        steps += 1
        time.sleep(0.001)
    assert steps > 5, time.perf_counter() - began


@pytest.mark.parametrize("module", [sums, calls, machine, pagemap_words])
def test_a_key_is_the_same_in_every_process(module: Any) -> None:
    name = module.__name__
    program = f"import {name}; from replay.jit import compiled; print(compiled.content({name!r}))"
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == compiled.content(name) + "\n"


def test_a_key_names_constants_and_inline_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    before = compiled.content(sums.__name__)
    monkeypatch.setattr(sums, "FACTOR", 4)
    after = compiled.content(sums.__name__)
    assert [line for line in after.splitlines() if line not in before.splitlines()] == ["FACTOR = 4"]
    monkeypatch.undo()

    @compiled.inline
    def times(value: int) -> int:
        return value + 1

    monkeypatch.setattr(sums, "times", times)
    assert "FACTOR = " not in compiled.content(sums.__name__)


@pytest.mark.parametrize("value", [[1, 2], 1.5, "text", lambda value: value, np.int64(3)])
def test_what_a_key_cannot_name_is_refused(monkeypatch: pytest.MonkeyPatch, value: Any) -> None:
    """A change of it would go unnoticed, and old code be run."""
    monkeypatch.setattr(sums, "FACTOR", value)
    with pytest.raises(TypeError, match="times uses FACTOR"):
        compiled.content(sums.__name__)
