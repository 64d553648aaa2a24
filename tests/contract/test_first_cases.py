"""`--first-cases` restricts coverage, and nothing else, to the first cases of each test."""

import os
import subprocess
import sys

import pytest
from coverage import CoverageData

from tests.first_cases import CASES, EXAMPLES
from tests.kit import ROOT

CONFTEST = "from tests.first_cases import pytest_addoption, pytest_configure\n"
FUNCTIONS = "def case_{0}():\n    return {0}\n\n"  # one for each case, three lines
TESTS = """
import measured, pytest
from hypothesis import given, settings, strategies as st
RUN = []

@pytest.mark.parametrize("number", range(6))
def test_case(number):
    RUN.append(getattr(measured, f"case_{number}")())

@settings(max_examples=30, database=None, derandomize=True)
@given(st.integers())
def test_property(value):
    RUN.append(getattr(measured, f"case_{len(RUN)}")())

def test_single():
    RUN.append(measured.case_99())
    assert RUN == [*range(36), 99]
"""


@pytest.fixture
def covered(tmp_path):
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "measured.py").write_text("".join(map(FUNCTIONS.format, range(100))))
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "contract").mkdir()
    contract = "import measured\ndef test_contract():\n    assert measured.case_50() == 50\n"
    (tmp_path / "contract" / "test_contract.py").write_text(contract)

    def run(*flags):
        """Numbers of the functions that coverage has seen in a run that passes."""
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": "",
            "COVERAGE_FILE": str(tmp_path / ".coverage"),
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", tmp_path,
             "-p", "no:cacheprovider", "--cov=measured", "--cov-report=", *flags, tmp_path],
            capture_output=True, text=True, env=environment, cwd=tmp_path, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        data = CoverageData(str(tmp_path / ".coverage"))
        data.read()
        lines = set(data.lines(str(tmp_path / "measured.py")))
        return [number for number in range(100) if 3 * number + 2 in lines]

    return run


def test_first_cases_of_each_test_are_traced(covered):
    properties = range(6, 6 + EXAMPLES)
    assert covered("--first-cases") == [*range(CASES), *properties, 99]


def test_all_cases_are_traced_without_the_option(covered):
    assert covered() == [*range(36), 50, 99]
