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


def kinds() -> set[str]:
    found = set[str]()
    for folder in ("doctor", "checking"):
        for path in (PACKAGE / folder).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Finding":
                    found |= set(texts(node.args[0]))
    return found


def test_the_table_has_every_kind_and_no_other() -> None:
    told = set(re.findall(r"^\| `([a-z0-9-]+)` \|", TABLE.read_text(), re.MULTILINE))
    assert told == kinds()
