"""Every kind of finding is in the table of the documentation, and none that is not found."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import convlens

PACKAGE = Path(convlens.__file__).parent
TABLE = PACKAGE.parents[1] / "docs" / "doctor.md"


def texts(node: ast.expr) -> Iterator[str]:
    """The strings that an expression can be."""
    if isinstance(node, ast.Constant):
        yield str(node.value)
    elif isinstance(node, ast.IfExp):
        yield from texts(node.body)
        yield from texts(node.orelse)


def returned(tree: ast.Module, name: str) -> Iterator[str]:
    """The strings that a module's function of this name can return."""
    functions = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == name)
    for node in (part for function in functions for part in ast.walk(function)):
        if isinstance(node, ast.Return) and node.value is not None:
            yield from texts(node.value)


def kinds() -> set[str]:
    found = set[str]()
    for folder in ("doctor", "checking"):
        for path in (PACKAGE / folder).glob("*.py"):
            tree = ast.parse(path.read_text())
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Finding":
                    kind = node.args[0]
                    found |= set(texts(kind))
                    if isinstance(kind, ast.Call):
                        found |= set(returned(tree, getattr(kind.func, "id", "")))
    return found


def test_the_table_has_every_kind_and_no_other() -> None:
    told = set(re.findall(r"^\| `([a-z0-9-]+)` \|", TABLE.read_text(), re.MULTILINE))
    assert told == kinds()
