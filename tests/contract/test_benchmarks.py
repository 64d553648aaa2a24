"""Benchmark scripts: each starts, and stores the environment with its result."""

import ast
import json
import re
import runpy
import sys
import tomllib

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


def test_extra_has_the_peers_of_the_quick_benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    peers = runpy.run_path(str(FOLDER / "quick.py"))["PEERS"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extra = {re.match(r"[\w-]+", x)[0] for x in project["optional-dependencies"]["bench"]}
    assert extra == {*peers}
    pins = "".join(
        (ROOT / name).read_text() for name in ("constraints.txt", "constraints-slow.txt")
    )
    assert {name for name in peers if f"\n{name}==" in pins} == extra


def test_trainer_overhead_compares_the_trainer_with_a_bare_loop(tmp_path):
    """One short round, Muon and a validation included: the script follows the trainer's changes."""
    flags = ["--sizes", "tiny", "--steps", "5", "--validations", "3", "--optimizers", "muon"]
    done = run_python(FOLDER / "trainer_overhead.py", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])["tiny, muon"]
    assert result["steps"] == 4  # turns between five steps
    assert result["samples"] == 3
    assert result["ratio"] > 0


@pytest.fixture
def quick_page(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return runpy.run_path(str(FOLDER / "quick_page.py"))


def test_quick_page_is_that_of_the_results(quick_page):
    page = quick_page["page"]()
    assert (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8") == page
    assert page.count("Where a peer is ahead") >= 1


def test_quick_page_names_each_peer_that_is_ahead(quick_page, tmp_path):
    """llama.cpp, whose Python package has no batches, is compared for one prompt."""
    rows = [
        {"name": "miniformer, float32", "batch_1": 50.0, "batch_16": 400.0},
        {"name": "miniformer, int4", "batch_1": 300.0, "batch_16": 500.0},
        {"name": "transformers, float32", "batch_1": 100.0, "batch_16": 200.0},
        {"name": "llama.cpp, q4_0", "batch_1": 200.0, "batch_16": 200.0},
    ]
    environment = {"packages": {"torch": "2.0"}}
    machine = {"cpu": "A 1", "threads": 1, "instructions": ["avx2"], "python": "3.11"}
    steps = {
        "environment": environment,
        "float32, vocabulary 65": {
            "gemm_peak_gflops": 1, "miniformer gpt2": {"tokens_per_s": 10},
            "miniformer llama": {"tokens_per_s": 30}, "nanogpt": {"tokens_per_s": 20},
        },
    }  # fmt: skip
    parts = {
        "decoding": {"seconds": 1, "result": {"14m": {"environment": environment, "rows": rows}}},
        "training_step": {"seconds": 2, "result": steps},
    }
    path = tmp_path / "a-1.json"
    path.write_text(json.dumps({"environment": machine, "parts": parts}))
    lines = quick_page["section"](path).splitlines()
    subject = "| decoding, 14M, float32, 16 prompts, tokens/s | "
    assert f"{subject}400 | transformers, float32 | 200 | 2.00 |" in lines
    assert sum("llama.cpp" in line for line in lines) == 1
    assert lines[lines.index("Where a peer is ahead by more than 3 %:") + 2 :] == [
        "- training step, gpt2 shape, float32, vocabulary 65, tokens/s: nanogpt has 2.00 of "
        "Miniformer's speed",
        "- decoding, 14M, float32, 1 prompt, tokens/s: transformers, float32 has 2.00 of "
        "Miniformer's speed",
    ]
    assert any("torch 2.0" in line and "1 thread;" in line for line in lines)
