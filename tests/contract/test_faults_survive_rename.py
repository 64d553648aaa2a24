"""Seeded faults need no edit after a rename: a copy of the tree with ten functions renamed."""

import ast
import re
import shutil
from collections import Counter

import pytest

from tests.faults import load
from tests.kit import ROOT, run_python

TREE = ["src", "tests", "benchmarks", "recipes", "docs", "README.md", "pyproject.toml"]


def parsed():
    """All modules but those of the faults, whose inner functions are named as their targets."""
    return [
        ast.parse(path.read_text(encoding="utf-8"))
        for folder in ("src", "tests", "benchmarks")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if not path.is_relative_to(ROOT / "tests" / "faults")
    ]


def unambiguous(names):
    """Names that mean one function wherever they stand: no module, method, parameter, variable."""
    defined, other_names = Counter(), {path.stem for path in (ROOT / "src").rglob("*.py")}
    for tree in parsed():
        inner = {id(node) for node in tree.body}
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
                defined[node.name] += 1 if id(node) in inner else 2
            elif isinstance(node, ast.arg | ast.keyword):
                other_names.add(node.arg)
            elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
                other_names.add(node.id)
            elif isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
                other_names.add(node.attr)
    return [name for name in names if defined[name] == 1 and name not in other_names]


def chosen():
    """Ten public functions that are targets of faults, and those faults."""
    targets = {}
    for fault in load().values():
        qualified = fault.target.partition(":")[2]
        if re.fullmatch(r"[a-z]+(_[a-z0-9]+)+", qualified):  # compound names are no other words
            targets.setdefault(qualified, []).append(fault.name)
    names = unambiguous(sorted(targets))
    assert len(names) >= 10
    selected = [names[position * len(names) // 10] for position in range(10)]
    return {name: targets[name] for name in selected}


@pytest.mark.slow
def test_faults_are_caught_in_a_tree_with_ten_renamed_functions(tmp_path):
    for name in TREE:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    names = chosen()
    word = re.compile(rf"\b({'|'.join(names)})\b")
    renamed = Counter()
    for path in [*tmp_path.rglob("*.py"), *tmp_path.rglob("*.md")]:
        text = path.read_text(encoding="utf-8")
        renamed.update(word.findall(text))
        path.write_text(word.sub(r"renamed_\1", text), encoding="utf-8")
    assert all(renamed[name] >= 3 for name in names)  # where it is defined, tested and a target
    faults = [fault for group in names.values() for fault in group]
    done = run_python("-m", "tests.faults", *faults, cwd=tmp_path, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(faults)} of {len(faults)} faults are caught" in done.stdout
