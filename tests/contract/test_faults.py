"""Seeded faults and the tests that catch them belong together."""

import ast
import re
import shutil

import pytest

from tests.faults import BrokenFault, Fault, load, replace
from tests.faults.selection import catching_tests
from tests.kit import ROOT, run_python

FAULTS = load()
SOURCE = ROOT / "src"


def test_faults_and_catches_marks_agree():
    assert set(catching_tests()) == set(FAULTS)


@pytest.mark.parametrize("name", sorted(FAULTS))
def test_fault_target_exists(name):
    """In the source, since some modules need packages that are not installed."""
    module, _, qualified = FAULTS[name].target.partition(":")
    path = SOURCE.joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    body = ast.parse(path.read_text(encoding="utf-8")).body
    for attribute in qualified.split("."):
        statements = [node for node in body if attribute in defined(node)]
        assert statements, f"{path} defines no {attribute}"
        body = getattr(statements[0], "body", [])


def defined(statement):
    """Names that a statement defines."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):  # replaced for this module alone
        return {name.asname or name.name for name in statement.names}
    targets = getattr(statement, "targets", [getattr(statement, "target", None)])
    return {
        name.id
        for target in targets
        if target
        for name in ast.walk(target)
        if isinstance(name, ast.Name)
    }


def test_catching_tests_gives_test_of_decorator_and_file_of_parameter(tmp_path):
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
    """Stand-in for an imported module."""

    class Part:
        limit = 3

        @staticmethod
        def double(x):
            return 2 * x

        def scaled(self, x, factor=2):
            return factor * x


def test_replace_keeps_static_methods_and_signature():
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
def test_replace_rejects_fault_that_does_not_fit(target, build, message):
    with pytest.raises(BrokenFault, match=message):
        replace(Module, Fault("fault", target, build))


SHOW = """
from miniformer.model.attention import apply_rotary
print(apply_rotary.__wrapped__.__module__)
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


TOY = """
def double(x):
    return 2 * x


def half(x):
    return x / 2


def square(x):
    return x * x
"""
TOY_FAULTS = """
from tests.faults import fault


@fault("toy.numbers:double")
def doubles_too_much(original):
    return lambda x: 3 * x


@fault("toy.numbers:half")
def halves_nothing(original):
    return lambda x: x


@fault("toy.numbers:square")
def squares_raise(original):
    def square(x):
        return x.missing

    return square


@fault("toy.numbers:square")
def squares_take_two(original):
    return lambda x, y: x * y


@fault("toy.numbers:double")
def nobody_looks(original):
    return lambda x: x
"""
TOY_TESTS = """
import pytest
from toy.numbers import double, half, square


@pytest.mark.catches("doubles_too_much")
def test_double():
    assert double(2) == 4


@pytest.mark.catches("halves_nothing")
def test_half():
    assert half(2) <= 2


@pytest.mark.catches("squares_raise", "squares_take_two")
def test_square():
    assert square(3) == 9
"""
# What takes seconds to import is not needed here.
RUN = (
    "import sys; from tests.faults import runner; "
    "runner._PRELOADED[:] = ['pytest', 'hypothesis']; sys.exit(runner.main())"
)


@pytest.fixture
def toy(tmp_path):
    """A separate tree with the mechanism, faults and tests; returns a function that runs faults."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "tests" / "faults", tmp_path / "tests" / "faults", ignore=ignored)
    for path in (tmp_path / "tests" / "faults").glob("*.py"):
        if path.stem not in ("__init__", "__main__", "plugin", "record", "runner", "selection"):
            path.unlink()
    files = {
        "src/toy/__init__.py": "",
        "src/toy/numbers.py": TOY,
        "tests/__init__.py": "",
        "tests/faults/toy.py": TOY_FAULTS,
        "tests/test_toy.py": TOY_TESTS,
        "tests/conftest.py": "from hypothesis import settings\n"
        "settings.register_profile('unshrunk')\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return lambda *names: run_python("-c", RUN, *names, cwd=tmp_path)


def test_runner_reports_caught_missed_and_broken_faults(toy):
    done = toy()
    assert done.returncode == 1, done.stderr
    outcomes = re.findall(r"^(caught|MISSED|BROKEN)  (\w+)", done.stdout, re.MULTILINE)
    assert {name: outcome for outcome, name in outcomes} == {
        "doubles_too_much": "caught",
        "halves_nothing": "MISSED",
        "squares_raise": "BROKEN",
        "squares_take_two": "BROKEN",
        "nobody_looks": "MISSED",
    }
    for reason in (
        "not caught by tests/test_toy.py::test_half (pytest's exit code 0)",
        "the code of the fault raises AttributeError: 'int' object has no attribute 'missing'",
        "squares_take_two: the replacement cannot be called as toy.numbers:square can",
        "no test is marked with catches()",
        "1 of 5 faults are caught",
    ):
        assert reason in done.stdout


def test_runner_runs_the_tests_without_a_fault_at_the_end(toy):
    done = toy("doubles_too_much")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "the tests pass without a fault")
    done = toy("doubles_too_much", "--tests-passed")
    assert done.stdout.splitlines()[-1] == "1 of 1 faults are caught"
    assert "no fault has the name unknown" in toy("unknown").stderr


@pytest.mark.parametrize("file", ["src/toy/numbers.py", "tests/test_toy.py", "tests/faults/toy.py"])
def test_recorded_fault_is_skipped_until_its_files_change(toy, tmp_path, file):
    toy("doubles_too_much", "halves_nothing", "--record", "--tests-passed")
    done = toy("doubles_too_much", "halves_nothing", "--changed", "--tests-passed")
    assert "1 of 2 faults are unchanged and skipped" in done.stdout
    assert re.findall(r"^(?:caught|MISSED)  (\w+)", done.stdout, re.MULTILINE) == ["halves_nothing"]
    path = tmp_path / file
    # A change of the file of faults counts where it is one of this fault's own function.
    path.write_text(
        path.read_text().replace("return lambda x: 3 * x", "return lambda x: 4 * x") + "#"
    )
    done = toy("doubles_too_much", "--changed", "--tests-passed")
    assert "caught  doubles_too_much" in done.stdout
    done = toy("doubles_too_much", "--changed", "--tests-passed")
    assert "caught  doubles_too_much" in done.stdout  # a run without --record records nothing


def docstring_only(path):
    """True if a file has no code."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return len(body) == 1 and isinstance(body[0], ast.Expr)


EXEMPT = {
    "miniformer.config": "gives names of its modules",
    "miniformer.config.size_presets": "is a table",
    "miniformer.data.reading.formats.base": "is an interface",
    "miniformer.model.cache.protocol": "is an interface",
    "miniformer.registry.commands": "is two tables",
}


def test_every_module_has_a_fault():
    modules = {
        ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        for path in SOURCE.rglob("*.py")
        if not docstring_only(path)
    }
    assert modules - {fault.module for fault in FAULTS.values()} == set(EXEMPT)
