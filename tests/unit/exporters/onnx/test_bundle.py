"""Files of exported folders."""

import json
import sys

import pytest

from miniformer import Pipeline, Tokenizer
from miniformer.exporters.onnx import bundle
from miniformer.tasks.classification import Classification
from tests.kit import ROOT, VERSE, tiny_model
from tests.kit.exports import write_folder


def test_files_of_a_folder(tmp_path):
    tokenizer = Tokenizer.train("byte", [VERSE])
    model = tiny_model(causal=False, output_dim=2, vocab_size=tokenizer.vocab_size)
    task = Classification(classes=["a", "b"], input_kind="text")
    pytest.importorskip("onnxruntime")
    write_folder(Pipeline(model, tokenizer, task=task), tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "run.py", "decoding.py", "encoding.py", "requirements.txt", "export.json",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    requirements = (tmp_path / "out/requirements.txt").read_text().splitlines()
    assert [line.partition("==")[0] for line in requirements] == [
        "onnxruntime", "numpy", "tokenizers",
    ]  # fmt: skip
    assert all(line.partition("==")[2] for line in requirements)
    about = json.loads((tmp_path / "out/export.json").read_text())
    facts = {"format": 1, "layers": 2, "kv_heads": 4, "head_width": 4, "max_seq_len": 32}
    assert {name: about[name] for name in facts} == facts
    assert about["command"] == "classify"


def test_runner_files_are_short_and_import_few_packages(tmp_path):
    allowed = {*sys.stdlib_module_names, "numpy", "onnxruntime", "tokenizers"}
    folder = ROOT / "src/miniformer/exporters/onnx/runner"
    for name in bundle.RUNNER_FILES:
        lines = (folder / name).read_text().splitlines()
        assert len(lines) <= 300
        starts = ("import ", "from ")
        modules = {line.split()[1] for line in lines if line.strip().startswith(starts)}
        others = {name for name in modules if not name.startswith("miniformer.exporters.onnx.")}
        assert {name.partition(".")[0] for name in others} <= allowed
