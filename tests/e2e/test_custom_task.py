"""Tasks of an installed package: training, report, saving and use from the command line."""

import json
import os
import re
import subprocess
import sys

import pytest

from tests.kit import ROOT, environment

# One as in docs/extending.md, one with custom names of columns and batch tensors.
PACKAGE = """
import dataclasses
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from miniformer.data.reading import schema
from miniformer.data.batching.length_bucketing import LengthBucketBatcher, pad_sequences
from miniformer.tasks.seq2seq import Seq2Seq
from miniformer.tasks.base import Task


@dataclasses.dataclass(frozen=True)
class Reversal(Seq2Seq):
    name: ClassVar[str] = "reversal"

    @property
    def schema(self):
        return {"text": schema.check_text}

    def texts(self, record):
        yield record["text"]

    def encode(self, records, tokenizer, seq_len):
        pairs = [{"source": r["text"], "target": r["text"][::-1]} for r in records]
        return super().encode(pairs, tokenizer, seq_len)


@dataclasses.dataclass(frozen=True)
class Shouting(Task):
    name: ClassVar[str] = "shouting"
    models: ClassVar[tuple[str, ...]] = ("encoder",)

    @property
    def schema(self):
        return {"letters": schema.check_text}

    def texts(self, record):
        yield record["letters"]

    def encode(self, records, tokenizer, seq_len):
        rows = tokenizer.encode_batch([r["letters"] for r in records])
        return [
            {"chars": np.array(row[:seq_len]), "extra": np.zeros(3, dtype=np.int64)}
            for row in rows
        ]

    def batcher(self, tokenizer, *, seq_len, batch_size, batch_tokens, training):
        def collate(examples, random):
            chars, mask = pad_sequences([e["chars"] for e in examples])
            mask = torch.ones_like(chars, dtype=torch.bool) if mask is None else mask
            return {"chars": chars, "real": mask}

        return LengthBucketBatcher(
            collate, length_columns=("chars",), batch_size=batch_size, batch_tokens=batch_tokens
        )

    def loss(self, model, batch):
        features = model.features(batch["chars"], batch["real"])[batch["real"]]
        labels = batch["chars"][batch["real"]]
        return model.cross_entropy(features, labels), torch.tensor(len(labels))

    def predict(self, model, tokenizer, inputs, options):
        rows = [torch.tensor([tokenizer.encode(text)]) for text in inputs]
        with torch.no_grad():
            best = [model.logits(model.features(row))[0].argmax(-1).tolist() for row in rows]
        return [tokenizer.decode(ids).upper() for ids in best]


@dataclasses.dataclass(frozen=True)
class Calling(Shouting):
    name: ClassVar[str] = "calling"
    token_arrays: ClassVar[tuple[str, ...]] = ("chars",)
    token_tensors: ClassVar[dict[str, str]] = {"chars": "real"}
"""
METADATA = "Metadata-Version: 2.1\nName: miniformer-shouting\nVersion: 1.0\n"
ENTRIES = """[miniformer.task]
reversal = miniformer_shouting:Reversal
shouting = miniformer_shouting:Shouting
calling = miniformer_shouting:Calling
"""
# All commands in one process, since imports dominate the time of a command.
SCRIPT = """
import io, json, sys
from miniformer import cli

for arguments, given in json.load(open("commands.json")):
    sys.stdin = io.StringIO(given)
    print("===", cli.main(arguments), flush=True)
"""
TEXTS = ["abc", "bca", "ab", "cab", "bacca", "a"]


def installed(tmp_path):
    """A folder with the installed package."""
    folder = tmp_path / "installed"
    about = folder / "miniformer_shouting-1.0.dist-info"
    about.mkdir(parents=True)
    (folder / "miniformer_shouting.py").write_text(PACKAGE)
    (about / "METADATA").write_text(METADATA)
    (about / "entry_points.txt").write_text(ENTRIES)
    return folder


def commands(tmp_path, folder, *runs):
    """Output and exit codes of commands."""
    (tmp_path / "commands.json").write_text(json.dumps(runs))
    (tmp_path / "run.py").write_text(SCRIPT)
    paths = os.pathsep.join(
        [str(folder), *filter(None, [os.environ.get("PYTHONPATH"), str(ROOT / "src")])]
    )
    done = subprocess.run(
        [sys.executable, "run.py"], cwd=tmp_path, env={**environment(), "PYTHONPATH": paths},
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    parts = re.split(r"^=== (\d+)\n", done.stdout, flags=re.MULTILINE)
    assert len(parts) == 2 * len(runs) + 1, done.stderr
    return parts[::2][: len(runs)], list(map(int, parts[1::2])), done.stderr


def training(task, field, tmp_path):
    path = tmp_path / f"{task}.jsonl"
    path.write_text("".join(json.dumps({field: text}) + "\n" for text in TEXTS * 5))
    shape = {"d_model": 32, "n_heads": 2, "n_layers": 1, "max_seq_len": 16, "dropout": 0.0}
    return [
        "train", "--task", task, "--train_path", str(path), "--val_path", str(path),
        "--tokenizer", "byte", "--model_config", json.dumps(shape), "--max_steps", "60",
        "--precision", "float32", "--experiment_name", task, "--logger", "none",
    ]  # fmt: skip


@pytest.mark.catches("declared_tokens_are_not_counted", "samples_need_sources")
def test_custom_tasks_are_trained_shown_saved_and_used(tmp_path):
    names = ("reversal", "shouting", "calling")
    lines = '{"letters": "ab"}\n"c"\n'
    printed, codes, errors = commands(
        tmp_path, installed(tmp_path),
        *((training(name, "text" if name == "reversal" else "letters", tmp_path), "")
          for name in names),
        (["predict", "runs/reversal/best", "-"], '{"text": "ab"}\n'),
        (["predict", "runs/shouting/best", "-"], lines),
        (["data", "check", "shouting.jsonl", "--task", "shouting"], ""),
    )  # fmt: skip
    assert codes == [0] * 6, errors
    tokens = 5 * sum(map(len, TEXTS))
    both = 5 * sum(2 * (len(text) + 1) for text in TEXTS)
    for text, name in zip(printed[:3], names, strict=True):
        count = both if name == "reversal" else tokens
        assert f"training data: 30 records, {count:,} tokens" in text
        assert re.search(r"step 60: validation loss [\d.]+", text)
        for folder in ("best", "last"):
            described = json.loads((tmp_path / "runs" / name / folder / "task.json").read_text())
            assert described["task"] == name
    assert re.search(r"sample: 'abc -> ", printed[0])
    assert isinstance(json.loads(printed[3]), str)
    assert [json.loads(line) for line in printed[4].splitlines()] == ["AB", "C"]
    assert "train: 30 valid records" in printed[5]
    for text, name in zip(printed[1:3], names[1:], strict=True):
        path = tmp_path / "runs" / name / "metrics.jsonl"
        rows = list(map(json.loads, path.read_text().splitlines()))
        (message,) = re.findall(r"trained on ([\d,]+) tokens", text)
        assert int(message.replace(",", "")) == rows[-1]["tokens"]
        if name == "calling":  # 60 steps are 20 passes of 3 batches; padding is no token
            assert rows[-1]["tokens"] == 20 * tokens
        else:
            assert rows[-1]["tokens"] >= 20 * tokens
        assert any(row.get("tokens_per_second", 0) > 0 for row in rows)
