"""Settings that a run determines by trial steps are printed, used, and saved."""

import dataclasses
import io
import json
import re
from functools import partial

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from miniformer import TrainConfig, registry, trainer
from miniformer.training.setup.auto_tune import auto_tune
from miniformer.training.setup.prepare import prepare
from miniformer.training.tuning.lr_finder import find_batch_size
from miniformer.utils.units import parse_bytes
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


@pytest.mark.usefixtures("real_pictures")
def test_auto_tune_memory_limit_and_lr(tmp_path, capsys):
    code, settings = run(tmp_path, "--memory_limit", "50GB", "--find_lr", "true")
    assert code == 0
    assert settings["batch_size"] * settings["accumulate_grad_batches"] == 8
    assert settings["lr"] not in (None, 5e-3)
    assert not settings["find_lr"]
    out = capsys.readouterr().out
    assert "memory 50 GB: batches of 8; no activation checkpointing" in out
    assert f"learning rate: {settings['lr']:g}" in out
    assert " predicted" in out.rpartition("memory: ")[2]
    assert (tmp_path / "runs" / "run" / "lr.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.catches("rates_are_tried_on_single_batches")
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_find_lr_uses_the_settings_of_the_run(tmp_path, monkeypatch, precision):
    """Two batches are all of the data; gradients are clipped to next to nothing."""
    given = {}

    def recorded(model, *, lr, weight_decay, layer_lr_decay=1.0, momentum=0.0):
        given.update(weight_decay=weight_decay, layer_lr_decay=layer_lr_decay, momentum=momentum)
        return torch.optim.SGD(model.parameters(), lr=lr)

    monkeypatch.setitem(registry._registered["optimizer"], "recorded", recorded)
    records = [{"input": "the cat sat", "label": 0}, {"input": "on a mat", "label": 1}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    config = TrainConfig(
        train_path=str(tmp_path / "a.jsonl"), task="classification", tokenizer="byte",
        model_config=json.loads(MODEL), batch_size=1, accumulate_grad_batches=2, find_lr=True,
        gradient_clip_val=1e-9, optimizer="recorded", optimizer_config={"momentum": 0.25},
        weight_decay=0.3, layer_lr_decay=0.5, precision=precision, accelerator="cpu",
    )  # fmt: skip
    console = Console(file=io.StringIO())
    run = prepare(dataclasses.replace(config, lr=0.1, find_lr=False), console)
    run.config = config
    batches = list(run.data.train_dataloader())
    assert len(batches) == 2
    enabled = precision == "bf16"
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
        sums = [run.task.loss(run.model, batch) for batch in batches]
    expected = sum(float(loss.detach()) for loss, _ in sums) / sum(
        float(count) for _, count in sums
    )
    auto_tune(run, console)
    search = run.lr_search
    assert len(search.losses) == 100
    assert search.losses == pytest.approx([expected] * 100, rel=1e-5)
    assert given == {"weight_decay": 0.3, "layer_lr_decay": 0.5, "momentum": 0.25}


@pytest.mark.catches("predicted_memory_leaves_out_the_optimizer")
def test_auto_tune_reports_predicted_and_used_memory(tmp_path, capsys, monkeypatch):
    """1 GB is in use, steps grow by 2 GB plus a fifth, Muon stores 8 bytes per parameter."""
    monkeypatch.setattr(
        "miniformer.training.tuning.memory_planner.step_memory_growth",
        lambda step, device: 2 * 10**9,
    )
    monkeypatch.setattr(
        "miniformer.training.tuning.memory_planner.current_memory", lambda device: 10**9
    )
    monkeypatch.setattr(
        "miniformer.training.callbacks.monitor.peak_memory", lambda device: 3_210_000_000
    )
    large = '{"d_model": 256, "n_heads": 4, "n_layers": 1, "max_seq_len": 16, "d_ff": 9000}'
    assert run(tmp_path, "--memory_limit", "50GB", "--model_config", large)[0] == 0
    folder, out = tmp_path / "runs" / "run", capsys.readouterr().out
    weights = load_file(folder / "last" / "model.safetensors")
    count = sum(weight.numel() for weight in weights.values())
    (planned,) = re.findall(r"memory 50 GB: .*; (.*) predicted at most", out)
    (used, predicted) = re.findall(r"memory: (.*) at most, (.*) predicted$", out, re.M)[0]
    assert used == "3.21 GB"
    assert planned == predicted
    total = 10**9 + 8 * count + 16 * 2**20 + 2.4 * 10**9
    assert parse_bytes(predicted) == pytest.approx(total, abs=1e6)
    assert f"{used} at most, {predicted} predicted" in (folder / "report.html").read_text()


def test_memory_limit_that_is_too_small_is_refused(tmp_path, capsys):
    code, settings = run(tmp_path, "--memory_limit", "10MB")
    assert code == 2
    assert settings is None
    assert "memory_limit=10 MB is too little" in capsys.readouterr().err


def test_find_batch_size_of_a_run(tmp_path, capsys, monkeypatch):
    quick = partial(find_batch_size, min_seconds=0.05)
    monkeypatch.setattr("miniformer.training.setup.auto_tune.find_batch_size", quick)
    code, settings = run(tmp_path, "--batch_size", "null", "--find_batch_size", "true")
    assert code == 0
    out, size = capsys.readouterr().out, settings["batch_size"]
    assert f"{size}  " in out
    assert f"  batch_size: {size} (find_batch_size: the most tokens per second)\n" in out
    assert out.count("\n  batch_size: ") == 1, "the size before is not shown"
    assert not settings["find_batch_size"]


@pytest.mark.filterwarnings("default")  # the compiler's own
def test_compiled_layers_train_to_the_same_losses(tmp_path, capsys):
    weights = []
    for compiled in ("true", "false"):
        assert run(tmp_path / compiled, "--compile", compiled, "--precision", "float32")[0] == 0
        folder = tmp_path / compiled / "runs" / "run" / "last"
        weights.append(load_file(folder / "model.safetensors"))
        summary = re.search(
            r"compiled in [\d.]+ s; a batch takes [\d.]+ ms, [\d.]+ before: it (pays|does not)",
            capsys.readouterr().out,
        )
        assert bool(summary) == (compiled == "true")
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5)
