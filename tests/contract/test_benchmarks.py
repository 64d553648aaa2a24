"""Benchmark scripts: each starts, and stores the environment with its result."""

import ast
import json
import runpy
import sys

import pytest

from tests.kit import ROOT, run_python

FOLDER = ROOT / "benchmarks"
SCRIPTS = [path for path in sorted(FOLDER.glob("*.py")) if "--save" in path.read_text("utf-8")]


def test_benchmarks_page_names_every_script():
    page = (FOLDER / "README.md").read_text(encoding="utf-8") + (ROOT / "Makefile").read_text()
    named = {path.name for path in SCRIPTS if f"benchmarks/{path.name}" in page}
    assert named == {path.name for path in SCRIPTS}
    assert SCRIPTS


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_benchmark_script_explains_its_flags(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    monkeypatch.syspath_prepend(FOLDER)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert ended.value.code == 0
    assert "--save" in capsys.readouterr().out


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_benchmark_script_stores_the_environment_with_its_result(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    keys = {
        key.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Dict)
        for key, value in zip(node.keys, node.values, strict=True)
        if isinstance(key, ast.Constant) and "environment(" in ast.unparse(value)
    }
    assert "environment" in keys


def test_environment_names_processor_versions_and_checkouts(tmp_path, monkeypatch):
    import torch

    monkeypatch.syspath_prepend(FOLDER)
    result = runpy.run_path(str(FOLDER / "environment.py"))["environment"](
        "hypothesis", "no-such-package", checkouts={"peer": tmp_path, "other": None}, threads=7
    )
    assert json.loads(json.dumps(result)) == result
    assert result["cpu"]
    assert result["threads"] == 7
    assert result["gpu"] is None or torch.cuda.is_available()
    versions = result["packages"]
    assert versions["torch"] == torch.__version__
    assert set(versions) == {"torch", "lightning", "hypothesis", "peer"}
    assert versions["peer"] is None  # no checkout of git's


def test_trainer_overhead_compares_the_trainer_with_a_bare_loop(tmp_path):
    """One short round, Muon and a validation included: the script follows the trainer's changes."""
    flags = ["--sizes", "tiny", "--steps", "5", "--validations", "3", "--optimizers", "muon"]
    done = run_python(FOLDER / "trainer_overhead.py", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])["tiny, muon"]
    assert result["steps"] == 4  # turns between five steps
    assert result["samples"] == 3
    assert result["ratio"] > 0
