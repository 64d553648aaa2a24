"""Runs with transforms: LoRA on a frozen base, and a classifier stored as int8."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import miniformer
from miniformer import TrainConfig, cli, trainer
from miniformer.registry import plugins as plugins_module
from miniformer.runtime.native.engine import get_engine
from miniformer.training.resume import verify
from miniformer.training.resume.storage import latest_checkpoint
from tests.kit import VERSE, write_jsonl
from tests.kit.plugins import LoRALinear, registered

MODEL = {"d_model": 16, "n_heads": 2, "n_layers": 2, "max_seq_len": 32, "dropout": 0.1}
LORA = [{"type": "lora", "rank": 2}]


@pytest.fixture(autouse=True, scope="module")
def plugins():
    with registered():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with data and a base model, made by a run."""
    path = tmp_path_factory.mktemp("runs")
    tokens = VERSE.split()
    write_jsonl(path / "t.jsonl", [" ".join(tokens[i % 7 :][:9]) for i in range(20)])
    write_jsonl(path / "v.jsonl", [VERSE[:40]])
    train(path, "base", model_config=MODEL, tokenizer="byte")
    return path


def flags(path, name, **settings):
    values = {
        "train_path": path / "t.jsonl", "val_path": path / "v.jsonl", "seq_len": 16,
        "batch_size": 3, "max_steps": 6, "precision": "float32", "accelerator": "cpu",
        "logger": "none", "work_dir": path, "experiment_name": name, **settings,
    }  # fmt: skip
    return [
        f"--{key}={json.dumps(value) if isinstance(value, dict | list) else value}"
        for key, value in values.items()
    ]


def train(path, name, **settings):
    assert trainer.main(flags(path, name, **settings)) == 0


@pytest.fixture(scope="module")
def lora_run(folder):
    train(
        folder, "lora", init_from=folder / "base" / "last", transforms=LORA, lr=0.05,
        ema_decay=0.5, average_checkpoints=2,
    )  # fmt: skip
    return folder / "lora"


def test_lora_trains_its_own_weights_only(folder, lora_run):
    base = miniformer.load(folder / "base" / "last").model.state_dict()
    model = miniformer.load(lora_run / "last").model
    assert json.loads((lora_run / "last" / "config.json").read_text())["transforms"] == LORA
    assert isinstance(model.layers[1].attention.v_proj, LoRALinear)
    weights = model.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in base.items())
    own = sorted(weights.keys() - base.keys())
    assert len(own) == 2 * 2 * 2
    assert all(weights[name].abs().sum() > 0 for name in own)
    checkpoint = load_file(latest_checkpoint(lora_run) / "state.safetensors")
    for prefix in ("optimizer.", "averages.ema."):
        names = {name.removeprefix(prefix) for name in checkpoint if name.startswith(prefix)}
        assert {name[: name.index("lora_") + 6] for name in names} == set(own)
    settings = json.loads((lora_run / "train_config.json").read_text())
    assert settings["transforms"] == LORA


def test_lora_decodes_with_kernels_as_merged(lora_run):
    adapted = miniformer.load(lora_run / "last")
    merged = miniformer.load(lora_run / "last")
    merged.model = miniformer.merge_transforms(merged.model)
    assert not any(isinstance(m, LoRALinear) for m in merged.model.modules())
    prompts = ["the ", "a", "of the"]
    options = {"max_new_tokens": 20, "temperature": 0.0}
    assert adapted.generate(prompts, **options) == merged.generate(prompts, **options)
    assert get_engine(adapted.model) is not None
    ids = adapted.tokenizer.encode("of the")
    (decoded,) = adapted.model.generate([ids], **options)
    assert decoded[len(ids) :] == plain_continuation(adapted.model, ids)


@torch.no_grad()
def plain_continuation(model, ids):
    """Greedy decoding by whole forward passes."""
    start = len(ids)
    while len(ids) < start + 20:
        ids = [*ids, int(model(torch.tensor([ids]))[0, -1].argmax())]
    return ids[start:]


def test_run_continues_the_adapter_of_its_model(folder, lora_run, capsys):
    train(folder, "more", init_from=lora_run / "last", lr=0.05, max_steps=2)
    out = " ".join(capsys.readouterr().out.split())
    assert "transforms: lora; " in out
    assert "weights: from" in out
    assert "newly initialized" not in out
    earlier, later = (miniformer.load(run / "last").model for run in (lora_run, folder / "more"))
    assert later.transforms == tuple(LORA)
    q_proj = "layers.0.attention.q_proj"
    for name, changes in (("weight", False), ("lora_b", True)):
        weights = [model.get_parameter(f"{q_proj}.{name}") for model in (earlier, later)]
        assert torch.equal(*weights) is not changes


@pytest.mark.catches("resumed_run_has_no_transforms")
def test_lora_resumes_bit_for_bit_after_kills(folder, tmp_path, monkeypatch):
    def forked(order):  # a fork has the plug-ins
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
    config = TrainConfig(
        train_path=str(folder / "t.jsonl"), val_path=str(folder / "v.jsonl"), seq_len=16,
        batch_size=3, max_steps=9, precision="float32", accelerator="cpu", ema_decay=0.9,
        val_check_interval=3, checkpoint_interval=2, transforms=LORA,
        init_from=str(folder / "base" / "last"),
    )  # fmt: skip
    report = verify.verify_resume(config, tmp_path, steps=9, kills=2, log=lambda line: None)
    assert report.bit_exact
    assert len(report.kills) == 2


def test_int8_classifier_from_disk_to_predictions(tmp_path):
    records = [{"input": f"{word} {i}", "label": word} for i in range(8) for word in ("a", "b")]
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    options = {"task": "classification", "train_path": path, "val_path": path, "max_steps": 3}
    options |= {"model_config": {**MODEL, "d_model": 64}, "tokenizer": "byte", "wide_head": "off"}
    train(tmp_path, "float", **options)
    train(tmp_path, "int8", **options, transforms=[{"type": "store_int8"}])
    best = {name: tmp_path / name / "best" for name in ("float", "int8")}
    sizes = {name: (best[name] / "model.safetensors").stat().st_size for name in best}
    assert sizes["int8"] < 0.5 * sizes["float"]
    assert (best["int8"] / "quantization.json").exists()
    # Training is the same; the weights of the file are rounded.
    reference = miniformer.load(best["float"])
    with torch.no_grad():
        for name, weight in reference.model.named_parameters():
            if name.startswith("layers.") and weight.dim() == 2:
                step = weight.abs().amax(1, keepdim=True) / 127
                weight.copy_((weight / step).round() * step)
    texts = [record["input"] for record in records]
    for ours, theirs in zip(
        miniformer.load(best["int8"]).predict(texts), reference.predict(texts), strict=True
    ):
        assert ours["label"] == theirs["label"]
        assert ours["scores"] == pytest.approx(theirs["scores"], abs=1e-5)
    (tmp_path / "in.jsonl").write_text(json.dumps({"input": "a 3"}) + "\n")
    arguments = ["predict", best["int8"], "--input", tmp_path / "in.jsonl", "--output"]
    assert cli.main([*map(str, arguments), str(tmp_path / "out.jsonl")]) == 0
    assert json.loads(Path(tmp_path / "out.jsonl").read_text())["label"] in ("a", "b")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"transforms": [{"type": "lara"}]}, "unknown transform 'lara' (did you mean 'lora'?)"),
        ({"transforms": [{"rank": 2}]}, "transforms[0] must be a name, or an object"),
        ({"transforms": [{"type": "lora", "ronk": 2}]}, "lora has no option 'ronk'"),
        ({"transforms": [{"type": "lora", "targets": []}]}, "no parameter of the model is trained"),
        ({"transforms": LORA, "pretrain": {"max_steps": 1}, "task": "classification"},
         "pretrain and transforms exclude each other"),
    ],
)  # fmt: skip
def test_transform_messages(folder, tmp_path, capsys, settings, message):
    values = {"model_config": MODEL, "tokenizer": "byte", "work_dir": tmp_path, **settings}
    assert trainer.main(flags(folder, "bad", **values)) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_resumed_run_cannot_change_its_transforms(lora_run, capsys):
    arguments = ["--resume", str(lora_run), "--transforms", "[]", "--max_steps", "9"]
    assert trainer.main(arguments) == 2
    assert "transforms is [{'type': 'lora', 'rank': 2}]" in " ".join(
        capsys.readouterr().err.split()
    )


@pytest.mark.catches("runs_do_not_name_their_packages")
def test_package_of_a_transform_is_required(folder, tmp_path, monkeypatch, capsys):
    """An installed package has the transform; without it, the model and the run name it."""
    about = tmp_path / "site" / "mini_lora-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: mini-lora\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[miniformer.transform]\npackaged = tests.kit.plugins:lora\n"
    )
    settings = {"init_from": folder / "base" / "last", "max_steps": 1, "work_dir": tmp_path}
    with monkeypatch.context() as patch:
        patch.syspath_prepend(about.parent)
        plugins_module._find_entry_points.cache_clear()
        train(folder, "run", **settings, transforms=["packaged"])
        directory = tmp_path / "run" / "last"
        config = json.loads((directory / "config.json").read_text())
        assert config["requires"] == ["mini-lora"]
        assert config["transforms"] == [{"type": "packaged"}]
        assert miniformer.load(directory).generate("the", max_new_tokens=1) is not None
    plugins_module._find_entry_points.cache_clear()
    message = "the model requires the package 'mini-lora', which is not installed; pip install"
    with pytest.raises(miniformer.UserError, match=message):
        miniformer.load(directory)
    capsys.readouterr()
    assert trainer.main(["--resume", str(tmp_path / "run"), "--max_steps", "2"]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
