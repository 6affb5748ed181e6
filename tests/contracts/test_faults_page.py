"""The page of faults and the tests of faults tell of each other."""

from __future__ import annotations

import ast
import re

from tests.contracts import checkout

_NAMED = re.compile(r"`(tests/[a-z0-9_/]+\.py)::(test_[a-z0-9_]+)`")
_PAGE = "docs/faults.md"
#: Tests of what judges, not of a fault: no server runs in them.
_OF_JUDGES = "tests/faults/test_history.py"


def _named() -> list[tuple[str, str]]:
    """The file and name of each test on the page, as often as it is there."""
    page = (checkout.ROOT / _PAGE).read_text(encoding="utf-8")
    return [(match[1], match[2]) for match in _NAMED.finditer(page)]


def _tests_in(path: str) -> set[str]:
    """Names of the test functions in a file, those in classes included; none where there is no such file."""
    file = checkout.ROOT / path
    if not file.is_file():
        return set()
    tree = ast.parse(file.read_text(encoding="utf-8"), path)
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return {function.name for function in functions if function.name.startswith("test_")}


def test_every_test_on_the_page_exists() -> None:
    named = _named()
    assert named
    assert not [f"{path}::{name}" for path, name in named if name not in _tests_in(path)]


def test_every_test_of_a_fault_is_on_the_page() -> None:
    paths = [path.relative_to(checkout.ROOT).as_posix() for path in (checkout.ROOT / "tests/faults").glob("test_*.py")]
    assert paths
    there = {(path, name) for path in paths if path != _OF_JUDGES for name in _tests_in(path)}
    assert not [f"{path}::{name}" for path, name in sorted(there - set(_named()))]


def test_every_row_of_the_page_names_a_test() -> None:
    page = (checkout.ROOT / _PAGE).read_text(encoding="utf-8")
    tables = page.split("| Fault | Injected by | Expected | Test |\n|---|---|---|---|\n")[1:]
    rows = [row for table in tables for row in table.partition("\n\n")[0].splitlines() if row.startswith("|")]
    assert rows
    assert not [row for row in rows if not _NAMED.search(row.rstrip("| ").rpartition("|")[2])]
