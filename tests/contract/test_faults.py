"""Seeded faults and the tests that catch them belong together."""

import ast

import pytest

from tests.faults import BrokenFault, Fault, load, replace
from tests.faults.selection import catching_tests
from tests.kit import ROOT, run_python

FAULTS = load()
SOURCE = ROOT / "src"


def test_every_fault_has_a_test_and_every_mark_a_fault():
    assert set(catching_tests()) == set(FAULTS)


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_target_of_fault_exists(name):
    """In the source, since some modules need packages that are not installed."""
    module, _, qualified = FAULTS[name].target.partition(":")
    path = SOURCE.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    body = ast.parse(path.read_text(encoding="utf-8")).body
    for attribute in qualified.split("."):
        found = [node for node in body if attribute in defined(node)]
        assert found, f"{path} defines no {attribute}"
        body = getattr(found[0], "body", [])


def defined(statement):
    """Names that a statement defines."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    targets = getattr(statement, "targets", [getattr(statement, "target", None)])
    return {
        name.id
        for target in targets
        if target
        for name in ast.walk(target)
        if isinstance(name, ast.Name)
    }


def test_selection_gives_the_test_of_a_decorator_and_the_file_of_a_parameter(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_x.py").write_text(
        "@pytest.mark.catches('a', 'b')\ndef test_one(): ...\n"
        "class TestAll:\n    @pytest.mark.catches('c')\n    def test_two(self): ...\n"
        "CASES = [pytest.param(1, marks=pytest.mark.catches('d'))]\n"
    )
    assert catching_tests(tmp_path / "tests") == {
        "a": ["tests/test_x.py::test_one"],
        "b": ["tests/test_x.py::test_one"],
        "c": ["tests/test_x.py::TestAll::test_two"],
        "d": ["tests/test_x.py"],
    }


class Module:
    """Stands for an imported module."""

    class Part:
        limit = 3

        @staticmethod
        def double(x):
            return 2 * x

        def scaled(self, x, factor=2):
            return factor * x


def test_replace_keeps_static_methods_and_the_signature():
    def build(original):
        def triple(x):
            return original(x) + x

        return triple

    replace(Module, Fault("triple", "m:Part.double", build))
    try:
        assert Module.Part.double(2) == Module.Part().double(2) == 6
        assert Module.Part.double.__name__ == "double"
    finally:
        Module.Part.double = staticmethod(lambda x: 2 * x)


@pytest.mark.parametrize(
    ("target", "build", "message"),
    [
        ("m:Part.gone", lambda original: 1, "does not exist"),
        ("m:Part.limit", lambda original: original, "is the original"),
        ("m:Part.scaled", lambda original: lambda self, x: x, "too many positional arguments"),
        ("m:Part.scaled", lambda original: lambda self, x, factor: x, "missing a required.*factor"),
        ("m:Part.scaled", lambda original: lambda self, y, factor=2: y, "unexpected.*'x'|missing"),
    ],
)
def test_replace_refuses_a_fault_that_does_not_fit(target, build, message):
    with pytest.raises(BrokenFault, match=message):
        replace(Module, Fault("fault", target, build))


SHOW = """
from miniformer.model.attention import rotate
print(rotate.__wrapped__.__module__)
"""
INSTALL = """
import subprocess, sys
from tests.faults import install
install("rotary_pairs_neighbors")
exec(sys.argv[1])
subprocess.run([sys.executable, "-c", sys.argv[1]], check=True)
"""


def test_installed_fault_reaches_importers_and_child_processes():
    done = run_python("-c", INSTALL, SHOW, cwd=ROOT)
    assert done.stdout.split() == ["miniformer.model.position"] * 2, done.stderr
