"""Finds the tests that say they catch a fault, without importing them."""

import ast
from collections import defaultdict
from pathlib import Path

from tests.faults import ROOT


def catching_tests(folder: Path = ROOT / "tests") -> dict[str, list[str]]:
    """Pytest arguments by the name of a fault.

    An argument is `file::test`, or the file where a parameter of a test has the mark. Unit tests
    are the first.
    """
    tests_by_fault: dict[str, set[str]] = defaultdict(set)
    for path in sorted(folder.rglob("test_*.py")):
        source = path.read_text(encoding="utf-8")
        if "catches(" in source:
            file = path.relative_to(folder.parent).as_posix()
            _visit(ast.parse(source), file, file, tests_by_fault)
    return {name: sorted(tests, key=_by_time) for name, tests in tests_by_fault.items()}


def _by_time(test: str) -> tuple[bool, str]:
    """Unit tests first: the first test that fails ends the run of a fault."""
    return not test.startswith("tests/unit/"), test


def _visit(node: ast.AST, file: str, prefix: str, tests_by_fault: dict[str, set[str]]) -> None:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            test = f"{prefix}::{child.name}"
            for decorator in child.decorator_list:
                for name in _names(decorator):
                    tests_by_fault[name].add(test)
            for inner in child.body:
                _visit(ast.Module([inner], []), file, test, tests_by_fault)
        else:
            for name in _names(child):
                tests_by_fault[name].add(file)


def _names(node: ast.AST) -> list[str]:
    """The names in every `catches(...)` call under a node."""
    calls = [
        call
        for call in ast.walk(node)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr == "catches"
    ]
    return [
        argument.value
        for call in calls
        for argument in call.args
        if isinstance(argument, ast.Constant)
    ]
