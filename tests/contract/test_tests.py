"""The tests themselves: none can pass without having compared anything."""

import ast

import pytest

from tests.kit import ROOT

FILES = sorted((ROOT / "tests").rglob("*.py"))
CALLS = {"raises", "warns", "fail", "gradcheck", "opcheck"}  # and what begins with `assert`
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
OTHERS = (*FUNCTIONS, ast.Lambda, ast.ClassDef)


def own(function):
    """A function's nodes, without those of functions inside."""
    pending = [function]
    while pending:
        for node in ast.iter_child_nodes(pending.pop()):
            if not isinstance(node, OTHERS):
                yield node
                pending.append(node)


def called(node):
    """The last part of the name that a call is of, or nothing."""
    if not isinstance(node, ast.Call):
        return ""
    return getattr(node.func, "attr", None) or getattr(node.func, "id", "")


def own_marks(function):
    """Names of a function's own calls, and `assert` for a statement."""
    for node in own(function):
        if mark := "assert" if isinstance(node, ast.Assert) else called(node):
            yield mark


def comparing(mark, helpers):
    return mark in helpers or mark.startswith("assert")


def compares(node, helpers):
    return isinstance(node, ast.Assert) or comparing(called(node), helpers)


@pytest.fixture(scope="module")
def functions():
    """(file, function) of all tests and of shared helpers."""
    return [
        (path, node)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, FUNCTIONS)
    ]


@pytest.fixture(scope="module")
def helpers(functions):
    """Names of functions that compare something, themselves or through others."""
    names, before = set(CALLS), -1
    marks = [(function.name, list(own_marks(function))) for _, function in functions]
    while len(names) > before:
        before = len(names)
        names |= {name for name, several in marks if any(comparing(x, names) for x in several)}
    return {name for name in names if not name.startswith("test_")}


def all_tests(functions):
    return [(path, function) for path, function in functions if function.name.startswith("test_")]


def described(path, function):
    return f"{path.relative_to(ROOT)}:{function.lineno} {function.name}"


def test_every_test_compares_something(functions, helpers):
    idle = [
        described(path, test)
        for path, test in all_tests(functions)
        if not any(compares(node, helpers) for node in own(test))
    ]
    assert idle == []


def test_every_test_compares_before_it_returns(functions, helpers):
    """A case that the test does not concern is left out of the parameters."""
    early = []
    for path, test in all_tests(functions):
        nodes = list(own(test))
        first = min((node.lineno for node in nodes if compares(node, helpers)), default=10**9)
        if any(isinstance(node, ast.Return) and node.lineno < first for node in nodes):
            early.append(described(path, test))
    assert early == []


@pytest.mark.parametrize(
    ("body", "idle", "early"),
    [
        ("assert x", False, False),
        ("f(x)", True, False),
        ("check(x)", False, False),
        ("if x:\n  return\n assert x", False, True),
        ("assert x\n if x:\n  return\n assert y", False, False),
        ("def inner():\n  assert x\n f(inner)", True, False),
        ("with pytest.raises(E):\n  f(x)", False, False),
    ],
)
def test_test_rules_accept_and_reject(body, idle, early, helpers):
    (test,) = ast.parse(f"def test_x(x):\n {body}\n").body
    pair, known = [(ROOT / "x.py", test)], helpers | {"check"}
    for rule, broken in (
        (test_every_test_compares_something, idle),
        (test_every_test_compares_before_it_returns, early),
    ):
        if broken:
            with pytest.raises(AssertionError):
                rule(pair, known)
        else:
            rule(pair, known)
