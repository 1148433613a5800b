# SPDX-License-Identifier: Apache-2.0
"""The reference explains itself: each function says what each of its parameters is."""

from __future__ import annotations

import ast
import inspect
import re

import pytest

from replay.teardown import reference

FUNCTIONS = {
    f"{node.name}:{node.lineno}": node
    for node in ast.walk(ast.parse(inspect.getsource(reference)))
    if isinstance(node, ast.FunctionDef)
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_parameter_is_described(name: str) -> None:
    function = FUNCTIONS[name]
    text = ast.get_docstring(function) or ""
    assert text, f"{name} says nothing"
    names = [each.arg for each in (*function.args.args, *function.args.kwonlyargs) if each.arg != "self"]
    assert [each for each in names if not re.search(rf"\b{each}: \w", text)] == []
