"""The examples of docs/chat.md and docs/finetuning.md run as printed."""

import io
import json
import shlex

import pytest

from miniformer import cli
from tests.contract.test_documents import blocks

SMALL = [
    "--max_steps", "2", "--logger", "none", "--seq_len", "128", "--tokenizer", "byte", "--quiet",
    "--model_config", '{"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 128}',
]  # fmt: skip


@pytest.mark.catches("templates_are_not_stored")
def test_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = [{"instruction": f"Add {n} and 1.", "output": f"{n + 1}"} for n in range(24)]
    (tmp_path / "alpaca.json").write_text(json.dumps(rows))
    outputs = []
    for line in blocks("docs/chat.md", "bash")[0].splitlines():
        arguments = shlex.split(line)[1:]
        if arguments[0] == "train":
            arguments += SMALL
        pipe = io.TextIOWrapper(io.BytesIO(b"Add 2 and 1.\n"))
        monkeypatch.setattr("sys.stdin", pipe)
        assert cli.main(arguments) == 0, line
        outputs.append(capsys.readouterr().out)
    assert "24 conversations written" in outputs[0]
    assert "[[1<|im_end|>]]" in outputs[1]
    add = ["tokenizer", "add-tokens", "runs/language_modeling", "out", "<|tool|>"]
    assert cli.main(add) == 0
    for code in blocks("docs/chat.md", "python"):
        exec(code, {})


def test_examples_of_fine_tuning_run():
    names = {}
    for code in blocks("docs/finetuning.md", "python"):
        exec(code, names)
    assert len(names["texts"]) == 3
