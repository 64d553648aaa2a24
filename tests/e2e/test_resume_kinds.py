"""Runs of every kind resume bit-exactly after a kill: weights, states and rows of metrics.

A kill is an exception in a batch here, after which nothing more is written: the files are those
that a kill leaves. `test_resume` kills real processes.
"""

import contextlib
import json
import math
import random

import lightning as L
import pytest
import torch
from safetensors.torch import load_file

from miniformer import TrainConfig, registry
from miniformer.data.batching import chunks
from miniformer.training.resume.config import resume_config
from miniformer.training.resume.storage import latest_checkpoint, read_checkpoint_metadata
from miniformer.training.resume.verify import state_digests
from miniformer.training.run import train
from tests.kit import VERSE, loss_plugins

MODEL = {"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 32, "dropout": 0.2}
TIMES = ("seconds", "tokens_per_second", "waiting", "mfu", "memory_mb")
STEPS, KILLS = 15, 3
WORDS = VERSE.split()
# Its features are drawn and fitted to the data once, before training.
WIDE_HEAD = [
    {"type": "kernels", "size": 168, "width": 1, "dilations": 2},
    {"type": "rbf", "size": 16, "of": {"type": "numbers", "size": 20}},
]
LARGE = {"MAX_IN_MEMORY_BYTES": 1, "_CHUNK_BYTES": 400}  # chunks of a few records


def records(task):
    for i in range(30):
        text = " ".join(WORDS[i % 9 :][: 3 + i % 7])
        if task == "seq2seq":
            yield {"source": text, "target": " ".join(WORDS[i % 5 :][: 1 + i % 4])}
        elif task == "chats":
            contents = [text[:18], " ".join(WORDS[i % 5 :][: 1 + i % 4])] * (1 + i % 2)
            roles = ("user", "assistant")
            yield {"messages": [
                {"role": roles[n % 2], "content": content} for n, content in enumerate(contents)
            ]}  # fmt: skip
        elif task == "series":
            yield {
                "input": [[math.sin(i % 3 + t * (1 + i % 2))] for t in range(20)],
                "label": i % 2,
            }
        elif task == "classification":
            yield {"input": text, "label": i % 2}
        else:
            yield {"text": text}


KINDS = {
    "muon": {"accumulate_grad_batches": 2, "ema_decay": 0.9},
    "large": {"limits": LARGE},
    "workers": {"limits": LARGE, "num_workers": 2},
    "stream": {"limits": {}, "streaming": True, "val_check_interval": 5},
    "buckets": {"task": "seq2seq", "batch_tokens": 120,
                "task_config": {"eval_generate_samples": 2}},
    "large buckets": {"limits": LARGE, "task": "seq2seq", "num_workers": 1, "batch_tokens": 120,
                      "tokenizer": "bpe", "task_config": {"bpe_dropout": 0.2, "r_drop": 1.0,
                                                          "eval_generate_samples": 0}},
    "masked": {"task": "masked_lm", "limits": LARGE, "optimizer": "adamw"},
    "classes": {"task": "classification", "task_config": {"r_drop": 1.0}},
    "wide head": {"records": "series", "task": "classification", "tokenizer": None,
                  "model_config": {**MODEL, "wide_head": WIDE_HEAD}},
    "prefixes": {"model": "seq2seq", "scheduler": "wsd"},
    "several passes": {"task": "text_grad_cache"},
    "bf16": {"precision": "bf16", "limits": LARGE},
    "schedule-free": {"optimizer": "schedulefree", "scheduler": "none"},
    "two threads": {"threads": 2, "model_config": {**MODEL, "d_model": 64, "d_ff": 256}},
    "conversations": {"records": "chats", "limits": LARGE, "seq_len": 192, "batch_size": 1,
                      "model_config": {**MODEL, "max_seq_len": 192}, "accumulate_grad_batches": 2,
                      "task_config": {"chat_template": "chatml"}},
    "rigl": {"sparse_training": {"interval": 2}, "ema_decay": 0.9},
    "movement": {"sparse_training": {"method": "movement", "interval": 1, "start": 0.0}},
    "epochs": {"max_steps": None, "max_epochs": 2, "val_check_interval": 4},
}  # fmt: skip


class Stopped(Exception):
    pass


class Stop(L.Callback):
    """Ends training in a batch, with nothing more written."""

    def __init__(self, batch):
        self.batch = batch

    def on_train_batch_start(self, *args):
        self.batch -= 1
        if not self.batch:
            raise Stopped


def settings(folder, name, **changes):
    kind = changes.pop("records", changes.get("task", "language_modeling"))
    for part, count in (("train", 30), ("val", 5)):
        lines = [json.dumps(record) for record in records(kind)][:count]
        (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
    return TrainConfig(**{
        "train_path": str(folder / "train.jsonl"), "val_path": str(folder / "val.jsonl"),
        "tokenizer": "byte", "model_config": MODEL, "batch_size": 4, "lr": 1e-2,
        "max_steps": STEPS, "val_check_interval": 6, "checkpoint_interval": 2, "logger": "none",
        "precision": "float32", "work_dir": str(folder), "experiment_name": name, **changes,
    })  # fmt: skip


def left_by(run):
    """Results of a run without times: its last checkpoint, its models, its rows."""
    left = {"state": state_digests(run)}
    for name in ("best", "last"):
        tensors = load_file(run / name / "model.safetensors")
        left[name] = {key: tensor.tolist() for key, tensor in tensors.items()}
    for name in ("metrics", "gradients", "samples"):
        path = run / f"{name}.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        left[name] = [
            {key: value for key, value in json.loads(line).items() if key not in TIMES}
            for line in lines
        ]
    return left


@pytest.mark.catches(
    "a_resumed_run_counts_tokens_anew", "a_pass_begins_with_its_first_pool",
    "a_resumed_stream_leaves_out_a_pool",
)  # fmt: skip
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("wide head", marks=pytest.mark.catches("the_wide_head_is_lost_on_resume")),
        pytest.param("rigl", marks=pytest.mark.catches("masks_are_drawn_again_on_resume")),
        pytest.param("movement", marks=pytest.mark.catches("scores_are_lost_on_resume")),
        *(kind for kind in KINDS if kind not in ("wide head", "rigl", "movement")),
    ],
)  # fmt: skip
def test_resume_of_each_kind_is_bit_exact(tmp_path, monkeypatch, kind):
    changes = dict(KINDS[kind])
    for name, value in changes.pop("limits", {}).items():
        monkeypatch.setattr(chunks, name, value)
    if "streaming" in changes:  # a shuffle buffer of eight records
        monkeypatch.setitem(chunks.StreamChunks.__init__.__kwdefaults__, "chunk_size", 8)
    for component, task in loss_plugins.COMPONENTS["task"].items():
        monkeypatch.setitem(registry._registered["task"], component, task)
    torch.set_num_threads(changes.pop("threads", 1))
    rng = random.Random(f"resume {kind}")
    accumulated = changes.get("accumulate_grad_batches", 1)

    train(settings(tmp_path, "whole", **changes))
    run_config, steps, chunk_indices = settings(tmp_path, "killed", **changes), [], []
    for _ in range(KILLS):
        batch = rng.randint(3 * accumulated, 7 * accumulated)  # after the next checkpoint
        with contextlib.suppress(Stopped):
            train(run_config, callbacks=[Stop(batch)])
        state = read_checkpoint_metadata(latest_checkpoint(tmp_path / "killed"))
        steps.append(state["step"])
        chunk_indices.append(state["data"]["pool"])
        run_config = resume_config(tmp_path / "killed", {})
    assert steps == sorted({*steps}), "each resumption is from a later checkpoint"
    train(run_config)
    reference, killed = left_by(tmp_path / "whole"), left_by(tmp_path / "killed")
    assert killed.keys() == reference.keys()
    for part, left in reference.items():
        assert killed[part] == left, part
    if run_config.max_steps is not None:
        assert reference["metrics"][-1]["step"] == STEPS
    if "limits" in KINDS[kind]:
        assert max(chunk_indices) > 0, "a checkpoint was within the data, after the first chunk"
