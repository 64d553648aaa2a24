"""Settings of a run: each has an effect, or is refused, or warns."""

import dataclasses
import hashlib
import io
import re
import warnings
from pathlib import Path

import lightning as L
import pytest
import torch
from rich.console import Console

from miniformer.config import ConfigError, NoEffectWarning, UserError
from miniformer.train_config import TrainConfig
from miniformer.training.run import train
from miniformer.training.setup.limits import count_validations, unreachable_limit_warnings
from tests.kit import VERSE, tiny_model, write_jsonl

SMALL = {"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 32}

REFUSED = {
    "warm-up": ({"warmup_steps": 7, "max_steps": 6}, "warmup_steps=7 is longer than the run of"),
    "rate": ({"optimizer_config": {"lr": 1.0}}, "optimizer_config: lr is a separate setting"),
    "decay": ({"optimizer_config": {"weight_decay": 1.0}}, "weight_decay is a separate setting"),
    "workers of a stream": (
        {"streaming": True, "max_steps": 1, "num_workers": 1},
        "num_workers has no effect with streaming",
    ),
    "part of a stream": (
        {"streaming": True, "max_steps": 1, "val_share": 0.1},
        "val_share has no effect with streaming: a part of a stream cannot be set aside",
    ),
    "two validations": (
        {"val_path": "b.txt", "val_share": 0.1},
        "val_path and val_share both give validation data",
    ),
    "passes of a stream": (
        {"streaming": True, "max_steps": 1, "max_epochs": 1},
        "max_epochs has no effect with streaming",
    ),
}


@pytest.mark.catches("settings_without_effect_pass", "problems_between_settings_pass")
@pytest.mark.parametrize("case", REFUSED)
def test_setting_without_effect_is_refused(case):
    changes, message = REFUSED[case]
    with pytest.raises(ConfigError, match=re.escape(message)):
        TrainConfig(train_path="a.txt", **changes)


def test_warmup_as_long_as_the_run_is_accepted():
    """The last step has the full factor of the warm-up."""
    taken = [
        TrainConfig(train_path="a.txt", warmup_steps=steps, **limit)
        for steps, limit in [(6, {"max_steps": 6}), (0, {"max_steps": 1}), (9, {"max_epochs": 1})]
    ]
    assert [config.warmup_steps for config in taken] == [6, 0, 9]


LIMITS = {
    "warm-up": ({"warmup_steps": 7}, 6, "warmup_steps=7 is longer than the run of 6 steps"),
    "warm-up of all steps": ({"warmup_steps": 6}, 6, None),
    "warm-up of unknown length": ({"warmup_steps": 7}, None, None),
    "patience": ({"early_stopping_patience": 9}, 100, "early_stopping_patience=9 cannot end a run"),
    "patience below": ({"early_stopping_patience": 8}, 100, None),
    "no patience": ({"early_stopping_patience": 0}, 1, None),
    "patience of few steps": ({"early_stopping_patience": 1}, 2, "a run of 2 validations early"),
    "patience by interval": ({"early_stopping_patience": 3, "val_check_interval": 25}, 101, None),
    "patience by interval, exactly": (
        {"early_stopping_patience": 3, "val_check_interval": 25}, 100,
        "a run of 4 validations early",
    ),
    "patience by unknown interval": (
        {"early_stopping_patience": 9, "val_check_interval": 5}, None, None
    ),
    "average": ({"average_checkpoints": 11}, 100, "average_checkpoints=11 averages 10 only"),
    "average of all": ({"average_checkpoints": 10}, 100, None),
    "average by time": ({"average_checkpoints": 11}, None, "averages 10 only"),
}  # fmt: skip


@pytest.mark.catches("limits_beyond_the_end_pass")
@pytest.mark.parametrize("case", LIMITS)
def test_limit_beyond_the_end_of_the_run_warns(case):
    changes, steps, message = LIMITS[case]
    messages = unreachable_limit_warnings(
        TrainConfig(train_path="a", val_path="b", **changes), steps
    )
    assert len(messages) == (0 if message is None else 1)
    assert message is None or message in messages[0]


@pytest.mark.parametrize("interval", [1, 3, 7, 8, None])
@pytest.mark.parametrize("steps", [1, 3, 7, 50])
def test_count_validations_is_that_of_the_run(interval, steps):
    """Counted step by step, as `ValidateInTime` is documented: at each interval and at the end."""
    count = sum(
        step == steps
        or (step % interval == 0 if interval else 10 * step // steps > 10 * (step - 1) // steps)
        for step in range(1, steps + 1)
    )
    config = TrainConfig(train_path="a", val_path="b", val_check_interval=interval)
    assert count_validations(config, steps) == count


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "a.jsonl", [VERSE, VERSE[::-1]] * 2)
    write_jsonl(tmp_path / "b.jsonl", [VERSE[5:], VERSE[:50]])
    (tmp_path / "t.csv").write_text(TABLE, encoding="utf-8")
    (tmp_path / "d.csv").write_text("text,count;text\none,1;two\nthree,2;four\n")
    return tmp_path


TABLE = """\
text,input,label,title,topic
a;b,caf\u00e9 one,x,first,u
c;d,"two ""too",y,second,v
e;f,caf\u00e9 three,x,third,v
g;h,"two ""four",y,fourth,u
"""

BASE = {
    "train_path": "a.jsonl", "model_config": SMALL, "tokenizer": "byte", "batch_size": 2,
    "max_steps": 4, "logger": "none", "precision": "float32",
}  # fmt: skip


class Note(L.Callback):
    """Records what the files of a run do not show: the mode of torch, and intermediate states."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, *args):
        folder = Path(trainer.default_root_dir)
        states = sorted(path.name for path in (folder / "checkpoints").glob("*"))
        self.seen.append(
            (trainer.global_step, states, torch.are_deterministic_algorithms_enabled())
        )


def outcome(changes):
    """Everything that a run leaves and prints, without times; or the message that refuses it."""
    shown, note = io.StringIO(), Note()
    settings = {**BASE, **changes}
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always", NoEffectWarning)
            config = TrainConfig(**settings)
            result = train(config, console=Console(file=shown, width=200), callbacks=[note])
    except UserError as error:
        return f"refused: {error}"
    finally:
        torch.use_deterministic_algorithms(False)
    weights = {
        str(path.relative_to(result.folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(result.folder.rglob("model.safetensors"))
    }
    names = sorted(str(path.relative_to(result.folder)) for path in result.folder.rglob("*"))
    names = [re.sub(r"tfevents.*", "tfevents", name) for name in names]
    lines = [
        re.sub(r"[\d.,]+ (s|tokens/s|%|MB)\b", "", line) for line in shown.getvalue().split("\n")
    ]
    lines = [line for line in lines if not line.startswith(("trained on", "memory:"))]
    warned = [str(warning.message) for warning in warned if warning.category is NoEffectWarning]
    return str(result.folder.parent), result.folder.name, weights, names, lines, note.seen, warned


VAL = {"val_path": "b.jsonl"}
TEXTS = {"train_path": "t.csv", "val_share": 0.0}
PAIR = ["input", "title"]
LABELS = {**TEXTS, "task": "classification"}
# For each field a value other than its default, and further settings of the run.
VALUES = {
    "train_path": ("b.jsonl", {}), "val_path": ("b.jsonl", {}), "test_path": ("b.jsonl", {}),
    "task": ("masked_lm", {}), "task_config": ({"bpe_dropout": 0.5}, {"tokenizer": "bpe"}),
    "model": ("seq2seq", {}), "model_config": ({**SMALL, "n_layers": 2}, {}),
    "model_size": ("small", {"model_config": {"max_seq_len": 32}}),
    "init_from": ("model", {"model_config": {}}), "pretrain": ({"max_steps": 1}, {}),
    "tokenizer": ("char", {}), "source_tokenizer": ("char", {}), "batch_size": (1, {}),
    "batch_tokens": (40, {}), "seq_len": (8, {}), "lr": (0.1, {}),
    "find_lr": (True, {}), "weight_decay": (0.5, {}), "layer_lr_decay": (0.5, {}),
    "scheduler": ("linear", {}), "scheduler_config": ({"decay_ratio": 0.9}, {"scheduler": "wsd"}),
    "warmup_steps": (4, {}), "warmup_ratio": (0.9, {}),
    "max_epochs": (1, {}), "max_steps": (2, {}), "max_time": ("0.001s", {}),
    "val_check_interval": (1, VAL), "optimizer": ("adamw", {}),
    "optimizer_config": ({"momentum": 0.5}, {}), "gradient_clip_val": (1e-6, {}),
    "accumulate_grad_batches": (2, {}), "ema_decay": (0.5, {}), "average_checkpoints": (2, VAL),
    "activation_checkpointing": ("full", {}), "memory_limit": ("8GB", {}),
    "find_batch_size": (True, {"batch_size": None}), "precision": ("bf16", {}),
    "accelerator": ("cuda" if not torch.cuda.is_available() else "cpu", {}),
    "strategy": ("ddp", {}), "num_workers": (1, {}), "streaming": (True, {}), "seed": (1, {}),
    "deterministic": (True, {}), "threads": (2, {}), "work_dir": ("others", {}),
    "experiment_name": ("mine", {}),
    "resume": ("nowhere", {}), "checkpoint_interval": (1, {}), "sample_prompt": ("The dog", VAL),
    "logger": ("csv", {}),
    "checkpoint_metric": ("loss", {**VAL, "task": "masked_lm"}),
    "val_share": (0.5, {}), "folds": (3, {**LABELS, "folds": 2, "fold": 1}),
    "fold": (2, {**LABELS, "folds": 2, "fold": 1}),
    "input_field": ("title", LABELS), "label_field": ("topic", LABELS),
    "text_field": ("title", TEXTS), "input_separator": (" ", {**LABELS, "input_field": PAIR}),
    "columns": ("title,input,label,text,topic", TEXTS),
    "delimiter": (";", {"train_path": "d.csv", "val_share": 0.0}),
    "quoting": ("none", LABELS), "encoding": ("latin-1", LABELS),
    "wide_head": ("off", {**LABELS, "val_share": None, "val_path": "t.csv"}),
    "early_stopping_patience": (1, {**VAL, "val_check_interval": 1, "lr": 0.0}),
}  # fmt: skip
ELSEWHERE = {
    "callbacks": "needs a callback; tests/e2e/test_stop_run.py",
    "auto": "needs a run of some length; tests/unit/training/trials/test_auto.py",
    "compile": "takes a minute; tests/unit/model/test_compile.py",
    "devices": "starts processes; tests/e2e/test_devices.py",
    "num_nodes": "needs other machines; refused in tests/e2e/test_devices.py",
    "transforms": "need a base or a plug-in; tests/e2e/test_transforms.py",
    "adapter": "needs a base; tests/e2e/test_adapters.py",
    "adapter_config": "needs a base; tests/e2e/test_adapters.py",
    "base_weights": "needs a base; tests/e2e/test_adapters.py",
    "quantize_aware": "tests/unit/compression/test_aware.py",
    "batch_order": "none is built in; tests/e2e/test_data_plugins.py",
    "loss_terms": "none is built in; tests/e2e/test_loss_terms.py",
    "early_exit": "needs two layers; tests/unit/training/loss/test_exits.py",
    "sparse_training": "tests/unit/compression/sparse_training/test_callback.py",
}


def test_effect_of_every_setting_is_tested():
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    assert fields == VALUES.keys() | ELSEWHERE.keys()
    assert not VALUES.keys() & ELSEWHERE.keys()


@pytest.mark.slow
@pytest.mark.parametrize("field", VALUES)
def test_setting_has_effect_or_is_refused_or_warns(files, field):
    value, more = VALUES[field]
    tiny_model(vocab_size=258).save_pretrained(files / "model")
    with_value, without = outcome({**more, field: value}), outcome(more)
    if isinstance(with_value, str):
        assert not isinstance(without, str), without
        assert field in with_value
    else:
        _, name, *rest = with_value
        assert (with_value[0], name.removesuffix("-2"), *rest) != (
            without[0], without[1].removesuffix("-2"), *without[2:]
        )  # fmt: skip


FROM_FILES = {
    "find_lr": ({"find_lr": True, "lr": 0.1}, "find_lr would override lr=0.1"),
    "model_size": (
        {"model_size": "tiny", "model_config": {**SMALL, "n_heads": 4}},
        "model_size=tiny has no effect: model_config sets the whole shape",
    ),
    "batch": ({"find_batch_size": True}, "find_batch_size would override batch_size=2"),
    "memory_limit": (
        {"memory_limit": "8GB", "activation_checkpointing": "full"},
        "memory_limit would override activation_checkpointing=full",
    ),
    "options": (
        {"optimizer_config": {"momentun": 0.9}},
        "unknown option of optimizer=muon in optimizer_config 'momentun' (did you mean 'momentum'",
    ),
    "schedule without options": (
        {"scheduler_config": {"decay_ratio": 0.5}},
        "scheduler=cosine has no options; leave scheduler_config out",
    ),
    "option of a schedule": (
        {"scheduler": "wsd", "scheduler_config": {"decay": 0.5}},
        "unknown option of scheduler=wsd in scheduler_config 'decay' (did you mean 'decay_ratio'",
    ),
    "value of an option of a schedule": (
        {"scheduler": "onecycle", "scheduler_config": {"pct_start": 1}},
        "scheduler_config: pct_start must be a number between 0 and 1, not 1",
    ),
    "value of an option": (
        {"optimizer": "adamw", "optimizer_config": {"betas": [2, 2]}},
        "optimizer_config: Invalid beta parameter",
    ),
    "sample": (
        {"task": "classification", "sample_prompt": "a", "val_path": "c.jsonl",
         "train_path": "c.jsonl"},
        "sample_prompt has no effect: task=classification generates no text",
    ),
    "tokenizer": (
        {"task": "regression", "train_path": "v.jsonl"},
        "tokenizer has no effect: task=regression reads no text here",
    ),
}  # fmt: skip


@pytest.mark.catches("replaced_settings_pass", "options_of_a_schedule_are_not_checked")
@pytest.mark.parametrize("case", FROM_FILES)
def test_run_refuses_what_it_would_ignore(files, case):
    (files / "c.jsonl").write_text('{"input": "a", "label": 1}\n{"input": "b", "label": 2}\n')
    (files / "v.jsonl").write_text(
        '{"input": [[1], [2]], "value": 1}\n{"input": [[3], [4]], "value": 2}\n'
    )
    changes, message = FROM_FILES[case]
    result = outcome(changes)
    assert isinstance(result, str)
    assert message in result
    assert not list(files.glob("runs/*")), "nothing is left of a run that never began"


WARNED = {
    "epochs": (
        {"max_steps": None, "max_epochs": 2, "warmup_steps": 50},
        "warmup_steps=50 is longer",
    ),
    "time": (
        {"max_steps": None, "max_time": "0.001s", "warmup_steps": 50},
        "than the run of 1 steps",
    ),
    "patience": (
        {**VAL, "early_stopping_patience": 4},
        "early_stopping_patience=4 cannot end a run",
    ),
}


@pytest.mark.catches("limits_beyond_the_end_pass_in_training")
@pytest.mark.parametrize("case", WARNED)
def test_run_warns_of_limits_beyond_its_end(files, case):
    changes, message = WARNED[case]
    (warning,) = outcome(changes)[-1]
    assert message in warning


def test_run_warns_of_workers_without_work(files):
    (message,) = outcome({"num_workers": 1, "max_steps": 1})[-1]
    assert "num_workers=1 has no effect: the training data is in memory" in message
