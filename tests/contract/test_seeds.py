"""Tests draw the same examples each time, or those of MINIFORMER_TEST_SEED."""

import os
import subprocess
import sys

import pytest

from tests.kit import ROOT, environment
from tests.kit.seeds import VARIABLE, chosen_seed

DRAWING = """
from hypothesis import given, strategies as st

@given(st.integers())
def test_drawing(number):
    with open("drawn", "a") as file:
        file.write(f"{number}\\n")
"""


def drawn(folder, seed):
    """The examples of a test in a child process, and what pytest printed."""
    folder.mkdir()
    (folder / "test_it.py").write_text(DRAWING)
    given = {**environment(), "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", VARIABLE: seed}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.conftest", "-c", os.devnull, "test_it.py"],
        cwd=folder, env=given, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return (folder / "drawn").read_text(), done.stdout


@pytest.mark.slow
def test_seed_decides_hypothesis_examples(tmp_path):
    first, output = drawn(tmp_path / "first", "1")
    assert "examples of MINIFORMER_TEST_SEED=1" in output
    assert drawn(tmp_path / "again", "1")[0] == first
    assert drawn(tmp_path / "other", "2")[0] != first


def test_seed_is_passed_to_child_processes(monkeypatch):
    monkeypatch.setenv(VARIABLE, "random")
    seed = chosen_seed()
    assert os.environ[VARIABLE] == str(seed)
    assert chosen_seed() == seed
    assert chosen_seed("17") == 17
    monkeypatch.delenv(VARIABLE)
    assert chosen_seed() is None
    monkeypatch.setenv(VARIABLE, "soon")
    with pytest.raises(ValueError, match="a number or 'random', not 'soon'"):
        chosen_seed()
