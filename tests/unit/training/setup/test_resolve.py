"""Settings of a run that need neither its data nor its model."""

import dataclasses

import pytest
import torch

from miniformer.config import UserError
from miniformer.config.resolved import ResolvedSetting
from miniformer.config.train_settings import HardwareSettings
from miniformer.train_config import TrainConfig
from miniformer.training.setup import resolve
from miniformer.training.setup.resolve import resolve_config, resolve_device_type, resolve_precision
from miniformer.utils.atomic import write_json


@pytest.mark.parametrize(
    ("accelerator", "cuda", "mps", "device_type"),
    [
        ("auto", True, True, "cuda"),
        ("auto", False, True, "mps"),
        ("auto", False, False, "cpu"),
        ("cpu", True, True, "cpu"),
    ],
)
def test_resolve_device_type_takes_the_fastest(monkeypatch, accelerator, cuda, mps, device_type):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert resolve_device_type(HardwareSettings(accelerator=accelerator)) == device_type


@pytest.mark.catches("precision_is_float32_unless_given")
@pytest.mark.parametrize(
    ("given", "fast", "precision"),
    [
        ("auto", True, "bf16"),
        ("auto", False, "float32"),
        ("bf16", False, "bf16"),
        ("float32", True, "float32"),
    ],
)
def test_resolve_precision_is_bf16_where_it_is_fast(monkeypatch, given, fast, precision):
    monkeypatch.setattr(resolve, "has_fast_bf16", lambda device_type: fast)
    assert resolve_precision(HardwareSettings(precision=given), "cpu") == precision


@pytest.mark.catches("summary_leaves_out_resolved_settings")
def test_summary_names_given_resolved_and_default_settings_in_the_order_of_fields(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    values = {"optimizer": "adamw", "accelerator": "cpu", "precision": "float32", "seed": 0}
    settings = resolve_config(TrainConfig(train_path="a", **values))
    assert settings.summary().splitlines() == [
        "settings given:",
        "  train_path: a",
        "  optimizer: adamw",
        "  seed: 0",
        "  accelerator: cpu",
        "  precision: float32",
        "settings resolved:",
        "  task: language_modeling (default)",
        "  model: decoder (default of language_modeling)",
        "  lr: 0.001 (default of adamw)",
        "  weight_decay: 0.1 (default)",
        "  scheduler: cosine (default)",
        "  warmup_ratio: 0.05 (default of cosine)",
        "  gradient_clip_val: 1.0 (default)",
        "  max_epochs: 10 (no limit is given)",
        f"  threads: {torch.get_num_threads()} (of OMP_NUM_THREADS)",
    ]


def test_apply_sets_fields_and_task_options_and_the_later_value_counts():
    settings = resolve_config(TrainConfig(train_path="a", task_config={"prepend_bos": True}))
    settings.apply(
        [
            ResolvedSetting("batch_size", 16, "default"),
            ResolvedSetting("batch_size", 4, "to stay within memory_limit"),
            ResolvedSetting("task_config.label_smoothing", 0.1, "a reason"),
        ],
        find_lr=True,
    )
    assert settings.config.batch_size == 4
    assert settings.config.task_config == {"prepend_bos": True, "label_smoothing": 0.1}
    assert settings.config.find_lr
    assert "batch_size: 4 (to stay within memory_limit)" in settings.summary()
    assert "batch_size: 16" not in settings.summary()


@pytest.mark.catches("changed_settings_are_those_of_the_resumed_run")
def test_summary_of_a_resumed_run_tells_its_settings_from_changed_ones(tmp_path):
    saved = TrainConfig(train_path="a", lr=0.5, max_steps=4, weight_decay=0.2)
    write_json(tmp_path / "train_config.json", saved.to_dict())
    changes = {"resume": str(tmp_path), "max_steps": 8, "weight_decay": 0.1}
    lines = resolve_config(dataclasses.replace(saved, **changes)).summary().splitlines()
    start, end = lines.index("settings of the resumed run:"), lines.index("settings resolved:")
    changed = ["  weight_decay: 0.1", "  max_steps: 8", f"  resume: {tmp_path}"]
    assert lines[0] == "settings given:"
    assert {*changed} <= {*lines[1:start]}  # weight_decay: the default, unlike in the run
    assert lines[start + 1 : end] == ["  train_path: a", "  lr: 0.5"]
    assert not {line.partition(":")[0] for line in lines[:end]} & {
        line.partition(":")[0] for line in lines[end:]
    }


def test_summary_has_the_vocabulary_size_after_the_tokenizer():
    settings = resolve_config(TrainConfig(train_path="a"))
    settings.resolved += [
        ResolvedSetting("tokenizer", "bpe", "default"),
        ResolvedSetting("vocab_size", 512, "a reason"),
    ]
    lines = settings.summary().splitlines()
    assert lines.index("  vocab_size: 512 (a reason)") == 1 + lines.index(
        "  tokenizer: bpe (default)"
    )


@pytest.mark.catches("find_lr_requires_a_default")
def test_find_lr_requires_no_default_learning_rate(monkeypatch):
    def no_default(optimizer, *, from_scratch):
        raise UserError("no default")

    monkeypatch.setattr(resolve, "resolve_lr", no_default)
    assert resolve_config(TrainConfig(train_path="a", find_lr=True)).config.lr is None
    with pytest.raises(UserError, match="no default"):
        resolve_config(TrainConfig(train_path="a"))
