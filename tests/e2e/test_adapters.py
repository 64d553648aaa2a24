"""Runs with adapters: what a run writes is what its base and its adapter directory compute."""

import json
import os
import sys

import pytest
import torch

import miniformer
from miniformer import TrainConfig, cli, trainer
from miniformer.training.resume import verify
from tests.kit import VERSE, write_jsonl

MODEL = {"d_model": 32, "n_heads": 2, "n_layers": 1, "max_seq_len": 32, "dropout": 0.1}
METHODS = {
    "lora": ("lora", {"r": 2, "dropout": 0.1, "init": "pissa"}, None),
    "dora": ("dora", {"r": 2, "targets": ["q_proj"]}, None),
    "ia3": ("ia3", {}, None),
    "bottleneck": ("bottleneck", {"size": 3}, None),
    "bitfit": ("bitfit", {}, None),
    "qlora": ("lora", {"r": 2, "modules_to_save": ["final_norm"]}, "int8"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with data and a base model, made by a run."""
    path = tmp_path_factory.mktemp("runs")
    tokens = VERSE.split()
    write_jsonl(path / "t.jsonl", [" ".join(tokens[i % 7 :][:9]) for i in range(20)])
    rows = [{"input": " ".join(tokens[i % 7 :][:5]), "label": "ab"[i % 2]} for i in range(24)]
    (path / "labels.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert train(path, "base", model_config=MODEL, tokenizer="byte") == 0
    return path


def train(path, name, **settings):
    values = {
        "train_path": path / "t.jsonl", "batch_size": 3, "max_steps": 4, "val_share": 0,
        "precision": "float32", "accelerator": "cpu", "logger": "none", "work_dir": path,
        "experiment_name": name, **settings,
    }  # fmt: skip
    if settings.get("task") is None:
        values["seq_len"] = 16
    return trainer.main([
        f"--{key}={json.dumps(value) if isinstance(value, dict | list) else value}"
        for key, value in values.items()
    ])  # fmt: skip


@pytest.mark.catches("base_weights_are_not_quantized", "saved_adapter_is_that_of_the_start")
def test_run_leaves_an_adapter_directory(folder):
    for name in ("lora", "qlora"):
        method, options, weights = METHODS[name]
        base = folder / "base" / "last"
        settings = {"init_from": base, "adapter": method, "adapter_config": options, "lr": 0.05}
        if weights is not None:
            settings["base_weights"] = weights
        assert train(folder, name, **settings) == 0
        own = miniformer.load(folder / name / "last").model
        loaded = miniformer.load(base, adapter=folder / name / "adapter").model
        ids = torch.randint(0, 50, (2, 9))
        torch.testing.assert_close(loaded(ids), own(ids), rtol=0, atol=1e-5)
        assert not torch.allclose(loaded(ids), miniformer.load(base).model(ids), atol=1e-2)
        values = getattr(own.layers[0].attention.q_proj, "values", None)
        assert (values is not None and values.dtype == torch.int8) is (name == "qlora")


def test_new_head_is_trained_and_used_by_the_commands(folder, capsys):
    base, adapter = folder / "base" / "last", folder / "labels" / "adapter"
    options = {"r": 2, "targets": ["q_proj"]}
    assert train(
        folder, "labels", train_path=folder / "labels.jsonl", task="classification", lr=0.05,
        init_from=base, adapter="lora", adapter_config=options,
    ) == 0  # fmt: skip
    expected = miniformer.load(folder / "labels" / "last").predict("the cat")
    actual = miniformer.load(base, adapter=adapter).predict("the cat")
    assert actual["scores"] == pytest.approx(expected["scores"], abs=1e-5)
    capsys.readouterr()
    flags = ["--adapter", str(adapter)]
    assert cli.main(["predict", str(base), "the cat", *flags]) == 0
    assert json.loads(capsys.readouterr().out)["label"] == expected["label"]
    assert cli.main(["evaluate", str(base), str(folder / "labels.jsonl"), "--json", *flags]) == 0
    assert "accuracy" in capsys.readouterr().out


@pytest.mark.parametrize("name", METHODS)
def test_each_method_resumes_bit_for_bit_after_a_kill(folder, name, tmp_path, monkeypatch):
    def forked(order):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
                code = verify.run_child(order)
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), ""

    monkeypatch.setattr(verify, "_run_subprocess", forked)
    method, options, weights = METHODS[name]
    config = TrainConfig(
        train_path=str(folder / "t.jsonl"), val_share=0.0, seq_len=16, batch_size=3, max_steps=4,
        precision="float32", accelerator="cpu", checkpoint_interval=2, adapter=method,
        adapter_config=options, base_weights=weights, init_from=str(folder / "base" / "last"),
    )  # fmt: skip
    report = verify.verify_resume(config, tmp_path, steps=4, kills=1, log=lambda line: None)
    assert report.bit_exact
    assert len(report.kills) == 1


def test_invalid_settings_are_one_message(folder, capsys):
    base = folder / "base" / "last"
    for settings, message in (
        ({"adapter": "lora"}, "adapter needs init_from"),
        ({"adapter": "lori", "init_from": base}, "adapter must be one of lora"),
        ({"adapter_config": {"r": 2}, "init_from": base}, "adapter_config needs adapter"),
        ({"adapter": "lora", "adapter_config": {"rank": 2}, "init_from": base}, "field 'rank'"),
        (
            {"adapter": "lora", "adapter_config": {"targets": ["q_prj"]}, "init_from": base},
            "did you mean 'q_proj'",
        ),
    ):
        assert train(folder, "invalid", **settings) == 2
        error = capsys.readouterr().err
        assert message in " ".join(error.split())
        assert "Traceback" not in error
    assert not (folder / "invalid").exists()
