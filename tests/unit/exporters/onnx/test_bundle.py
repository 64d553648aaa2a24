"""Exported folders in onnxruntime: `run.py` without torch and this package gives the same texts."""

import json
import sys

import pytest

import miniformer
from miniformer import Pipeline, Seq2SeqTransformer, Tokenizer
from miniformer.exporters.onnx import bundle
from miniformer.exporters.onnx.runner import run
from miniformer.tasks.classification import Classification
from miniformer.tasks.language_modeling import LanguageModeling
from miniformer.tasks.seq2seq import Seq2Seq
from tests.kit import ROOT, VERSE, run_python, tiny_model
from tests.kit.exports import write_folder

# Runs a program in a process in which torch and this package cannot be imported.
WITHOUT = """
import runpy, sys
for name in ("torch", "miniformer", "transformers", "lightning"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
sys.path[0] = sys.argv[0].rpartition("/")[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def excerpts(count):
    """Texts of many lengths."""
    return [VERSE[start % 90 :][: 1 + start % 23] for start in range(count)]


def export(folder, task, model=None, **changes):
    """A pipeline, and the model of its exported folder in onnxruntime."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    tokenizer = Tokenizer.train("bpe", [VERSE] * 3, 300)
    changes = {"vocab_size": tokenizer.vocab_size, "max_seq_len": 64, "n_layers": 1, **changes}
    if model is not None:
        changes |= {"model": model, "causal": False}
    pipeline = Pipeline(tiny_model(**changes), tokenizer, task=task)
    miniformer.export(pipeline, folder / "out", to="onnx", verify=False)
    return pipeline, run.Model(folder / "out", threads=1)


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    folder = tmp_path_factory.mktemp("causal")
    return folder / "out", *export(folder, LanguageModeling(), n_kv_heads=2, norm="rmsnorm")


@pytest.mark.catches("masked_past_is_attended", "rows_end_in_different_columns")
def test_200_prompts_greedily_in_ragged_batches(causal):
    _, pipeline, runner = causal
    prompts, options = excerpts(200), {"temperature": 0.0, "max_new_tokens": 12}
    rows = [row.inputs for row in runner.encode(prompts)]
    for first in range(0, 200, 8):
        batch = slice(first, first + 8)
        outputs = runner.generate_tokens(rows[batch], **options)
        expected = pipeline.generate_outputs(prompts[batch], **options)
        assert [x.tokens for x in outputs] == [x.tokens for _, x in expected]
    assert runner.generate(prompts, **options) == pipeline.generate(prompts, **options)


def test_samples_and_stop_strings_in_onnxruntime(causal):
    _, pipeline, runner = causal
    options = {"temperature": 0.9, "seed": 5, "top_p": 0.9, "num_return_sequences": 2}
    expected = pipeline.generate(excerpts(9), max_new_tokens=9, stop_strings=["e"], **options)
    texts = runner.generate(excerpts(9), max_new_tokens=9, stop_strings=["e"], **options)
    assert texts == [text for copies in expected for text in copies]


@pytest.mark.catches("runner_lacks_a_file")
def test_the_runner_needs_neither_torch_nor_this_package(causal):
    folder, pipeline, _ = causal
    arguments = ["generate", "The cat", "a", "--temperature", "0", "--max_new_tokens", "9"]
    done = run_python("-c", WITHOUT, folder / "run.py", *arguments, cwd=folder.parent)
    texts = pipeline.generate(["The cat", "a"], temperature=0.0, max_new_tokens=9)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"The cat{texts[0]}\na{texts[1]}\n"
    blocked = run_python("-c", WITHOUT, ROOT / "src/miniformer/cli.py")
    assert "import of miniformer halted" in blocked.stderr


@pytest.mark.catches("beams_keep_their_past", "beams_take_the_source_of_others")
def test_five_beams_on_100_sources(tmp_path):
    pipeline, runner = export(tmp_path, Seq2Seq(), Seq2SeqTransformer, n_decoder_layers=1)
    options = {"num_beams": 5, "num_return_sequences": 5, "max_new_tokens": 10}
    ends = [pipeline.tokenizer.eos_id, *range(3, 300, 12)]
    expected = pipeline.generate_outputs(excerpts(100), stop_token_ids=ends, **options)
    outputs = runner.generate_outputs(excerpts(100), stop_token_ids=ends, **options)
    assert [x.tokens for _, x in outputs] == [x.tokens for _, x in expected]
    scores = [(x.score, y.score) for (_, x), (_, y) in zip(outputs, expected, strict=True)]
    assert max(abs(x - y) for x, y in scores) < 1e-4


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
