"""Settings that a run finds by trying are told, used, and written down."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from miniformer import trainer
from tests.kit import VERSE, write_jsonl

MODEL = '{"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 16, "dropout": 0.0}'


def run(tmp_path, *more):
    tmp_path.mkdir(exist_ok=True)
    write_jsonl(tmp_path / "train.jsonl", [VERSE] * 30)
    flags = ["--train_path", str(tmp_path / "train.jsonl"), "--tokenizer", "byte",
             "--model_config", MODEL, "--batch_size", "8", "--max_steps", "6", "--logger", "none",
             "--work_dir", str(tmp_path / "runs"), "--experiment_name", "run"]  # fmt: skip
    code = trainer.main([*flags, *more])
    path = tmp_path / "runs" / "run" / "train_config.json"
    return code, json.loads(path.read_text()) if path.exists() else None


def test_a_limit_of_memory_and_a_rate(tmp_path, capsys):
    code, settings = run(tmp_path, "--memory", "50GB", "--find_lr", "true")
    assert code == 0
    assert settings["batch_size"] * settings["accumulate_grad_batches"] == 8
    assert settings["lr"] not in (None, 5e-3)
    assert not settings["find_lr"]
    out = capsys.readouterr().out
    assert "memory 50 GB: batches of 8; no activation checkpointing" in out
    assert f"learning rate: {settings['lr']:g}" in out
    assert " predicted" in out.rpartition("memory: ")[2]
    assert (tmp_path / "runs" / "run" / "lr.png").read_bytes().startswith(b"\x89PNG")


def test_too_little_memory_is_told(tmp_path, capsys):
    code, settings = run(tmp_path, "--memory", "10MB")
    assert code == 2
    assert settings is None
    assert "memory=10 MB is too little" in capsys.readouterr().err


def test_a_batch_size(tmp_path, capsys):
    code, settings = run(tmp_path, "--find_batch_size", "true")
    assert code == 0
    assert f"{settings['batch_size']}  " in capsys.readouterr().out
    assert not settings["find_batch_size"]


@pytest.mark.filterwarnings("default")  # the compiler's own
def test_compiled_layers_learn_the_same(tmp_path, capsys):
    weights = []
    for compiled in ("true", "false"):
        assert run(tmp_path / compiled, "--compile", compiled, "--precision", "float32")[0] == 0
        folder = tmp_path / compiled / "runs" / "run" / "last"
        weights.append(load_file(folder / "model.safetensors"))
        told = re.search(
            r"compiled in [\d.]+ s; a batch takes [\d.]+ ms, [\d.]+ before: it (pays|does not)",
            capsys.readouterr().out,
        )
        assert bool(told) == (compiled == "true")
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5)
