"""FLOPs of training batches against torch's own counter, on real models, forward and backward."""

import io
import json
import types

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from miniformer import TrainConfig
from miniformer.model.execution_settings import set_attention_backend
from miniformer.training.callbacks.budget import Budget
from miniformer.training.callbacks.monitor import RunMonitor
from miniformer.training.callbacks.progress import ProgressCallback
from miniformer.training.setup.prepare import prepare
from tests.kit.clock import Clock

MODEL = {"d_model": 16, "n_heads": 2, "n_layers": 2, "max_seq_len": 32, "dropout": 0.0}
WORDS = "abcdefgh ijklmnop qrstuvwx "


def text(length, start=0):
    return (WORDS * 4)[start : start + length]


def records(task):
    if task == "classification":
        return [{"input": text(12, i), "label": i % 2} for i in range(8)]
    if task == "features":
        return [{"input": [[0.5, i, 1.0]] * 11, "label": i % 2} for i in range(8)]
    if task == "regression":
        return [{"input": text(12, i), "value": i / 3} for i in range(8)]
    if task == "seq2seq":
        return [{"source": text(19, i), "target": text(6, i)} for i in range(8)]
    return [{"text": text(24, i)} for i in range(8)]


def prepared(tmp_path, monkeypatch, task, **settings):
    """A run with examples of equal length, so that no batch is padded; and a batch."""
    monkeypatch.setattr(
        "miniformer.training.callbacks.monitor.peak_flops", lambda device, dtype: 1e9
    )
    path = tmp_path / "train.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records(task)))
    name = {"features": "classification", "prefix": "language_modeling"}.get(task, task)
    model = {**MODEL, **settings.pop("model_config", {})}
    config = TrainConfig(
        train_path=str(path), task=name, tokenizer=None if task == "features" else "byte",
        model_config=model, batch_size=4, precision="float32", **settings,
    )  # fmt: skip
    run = prepare(config, Console(file=io.StringIO()))
    batch = next(iter(run.data.train_dataloader()))
    assert batch["about"]["padding"] == 0
    watch = RunMonitor(run, None, tmp_path, is_global_zero=False)
    return run, batch, watch


def counted(run, batch):
    """FLOPs of a forward and a backward pass by torch's counter."""
    model = run.model.train()
    set_attention_backend(model, "plain")

    def cross_entropy(features, labels):  # of the fused one the counter misses a product
        return F.cross_entropy(model.logits(features), labels, reduction="sum")

    model.cross_entropy = cross_entropy
    with FlopCounterMode(display=False) as counter:
        run.task.loss(model, batch)[0].backward()
    return counter.get_total_flops()


def masked_products(rows, length, width=16):
    """FLOPs that the counter adds for causally masked query-key pairs, in a layer."""
    hidden = sum(key > query for query in range(length) for key in range(length))
    multiply_adds = 2 * rows * hidden * width  # scores, and the mean of values
    return 3 * 2 * multiply_adds  # forward, and twice back


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("classification", {}),
        ("classification", {"task_config": {"r_drop": 1.0}}),
        ("classification", {"model_config": {"head": "dense_tanh"}}),
        ("regression", {"model_config": {"n_kv_heads": 1, "activation": "swiglu"}}),
        ("masked_lm", {}),
    ],
    ids=str,
)
@pytest.mark.catches("the_head_reads_every_token", "training_is_a_forward_pass")
def test_training_flops_of_an_encoder_match_torch(tmp_path, monkeypatch, task, settings):
    run, batch, watch = prepared(tmp_path, monkeypatch, task, **settings)
    assert watch.train_flops(batch) == counted(run, batch)


def test_training_flops_of_feature_inputs_match_torch(tmp_path, monkeypatch):
    """Features need no gradient, so its product is not computed."""
    run, batch, watch = prepared(tmp_path, monkeypatch, "features")
    assert batch["inputs"].shape == (4, 11, 3)
    assert watch.train_flops(batch) == counted(run, batch) + 2 * (4 * 11) * 3 * 16


def test_training_flops_of_a_causal_model_count_visible_pairs(tmp_path, monkeypatch):
    run, batch, watch = prepared(tmp_path, monkeypatch, "language_modeling", seq_len=16)
    rows, length = batch["input_ids"].shape
    assert (rows, length) == (4, 16)
    unseen = 2 * masked_products(rows, length)
    assert watch.train_flops(batch) == counted(run, batch) - unseen


@pytest.mark.parametrize("task", ["seq2seq", "prefix"])
@pytest.mark.catches(
    "cross_attention_keys_are_those_of_targets", "target_flops_are_those_of_sources"
)
def test_training_flops_of_seq2seq_match_torch(tmp_path, monkeypatch, task):
    """Each stack has its own number of tokens: targets and sources differ in length."""
    settings = {"model_config": {"n_decoder_layers": 3}, "model": "seq2seq"}
    if task == "seq2seq":  # whose examples would differ in length
        settings["task_config"] = {"copy_noise": 0.0}
    run, batch, watch = prepared(tmp_path, monkeypatch, task, **settings)
    source, target = batch["source"].shape, batch["target"].shape
    assert source[1] != target[1]
    assert batch["about"]["tokens"] == source.numel() + target.numel()
    unseen = 3 * masked_products(*target)
    assert watch.train_flops(batch) == counted(run, batch) - unseen


@pytest.mark.catches("padding_counts_as_tokens")
def test_training_flops_do_not_count_padding(tmp_path, monkeypatch):
    """Rows of padding do not count."""
    run, batch, watch = prepared(tmp_path, monkeypatch, "masked_lm")
    rows, length = batch["inputs"].shape
    padded = {
        "inputs": F.pad(batch["inputs"], (0, 0, 0, 3)),
        "labels": F.pad(batch["labels"], (0, 0, 0, 3), value=-100),
        "attention_mask": torch.arange(rows + 3)[:, None].expand(rows + 3, length) < rows,
    }
    about = {"epochs": 0, "state": {"epoch": 0, "pool": 0, "batch": 0}}
    served = run.data.train_dataloader()._batch_of_rank([(padded, about)])
    assert served["about"]["padding"] == 3 * length
    assert watch.train_flops(served) == watch.train_flops(batch)


@pytest.mark.catches("the_work_of_one_device_is_that_of_all")
@pytest.mark.parametrize("devices", [1, 2, 4])
def test_monitor_reports_speed_and_mfu_of_all_devices(tmp_path, devices):
    """Each device does 4,000 FLOPs for each of 500 tokens in 10 s: 20 % of 1 MFLOP/s."""
    progress = ProgressCallback(
        Budget(max_steps=9), tmp_path / "metrics.jsonl", Console(file=io.StringIO()),
        flops_per_batch=lambda batch: 4000.0 * batch["about"]["tokens"],
        peak_flops=devices * 1e6, is_global_zero=False,
    )  # fmt: skip
    # Work within a step counts as well.
    module = types.SimpleNamespace(tokens=7, padding=0, between_steps=False)
    fake = types.SimpleNamespace(train_dataloader=types.SimpleNamespace(load_seconds=1.0))
    progress.budget.start()
    before = progress._snapshot(fake, module)._replace(seconds=100.0)
    for tokens in (300, 200):
        progress.on_train_batch_end(fake, module, None, {"about": {"tokens": tokens}}, 0)
    module.tokens += devices * 500
    fake.train_dataloader.load_seconds += 2.5
    after = progress._snapshot(fake, module)._replace(seconds=110.0)
    assert progress._throughput_since(before, after) == {
        "tokens_per_second": 50.0 * devices, "waiting": 0.25, "mfu": 0.2,
    }  # fmt: skip


@pytest.mark.catches("validation_counts_as_training")
def test_monitor_excludes_validation_time_after_a_resume(monkeypatch):
    clock = Clock().install(monkeypatch)
    budget = Budget(max_steps=10)
    budget.start()
    clock.now += 5.0
    budget.start_validation()
    clock.now += 3.0
    assert (budget.local_seconds, budget.validation_seconds, budget.training_seconds) == (8, 3, 5)
    state = budget.state_dict()
    clock.now += 1.0
    budget.end_validation()
    clock.now += 2.0
    assert (budget.local_seconds, budget.validation_seconds, budget.training_seconds) == (11, 4, 7)
    resumed = Budget(max_steps=10)
    resumed.start(**state)
    clock.now += 2.0
    assert (resumed.local_seconds, resumed.training_seconds) == (10, 7)
