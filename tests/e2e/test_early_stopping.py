"""Runs that stop early: from the best weights, annealed, and with the same bits when resumed."""

import json
import os
import signal

import lightning as L
import pytest
import torch

import miniformer
from miniformer import TrainConfig
from miniformer.training.resume.verify import weights_digest
from miniformer.training.run import train
from tests.kit import VERSE

MODEL = {"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, tokens, flipped in (("train", VERSE.split(), 0), ("val", VERSE[::-1].split(), 1)):
        # The validation has other labels: it gets worse while the training data is learned.
        records = [{"input": token, "label": (len(token) + flipped) % 2} for token in tokens]
        lines = [json.dumps(record) + "\n" for record in records]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


def config(folder, name, **changes):
    return TrainConfig(**{
        "train_path": str(folder / "train.jsonl"), "val_path": str(folder / "val.jsonl"),
        "task": "classification", "tokenizer": "byte", "model_config": MODEL, "batch_size": 8,
        "max_steps": 5000, "val_check_interval": 10, "early_stopping_patience": 2, "lr": 1e-3,
        "checkpoint_metric": "loss",
        "ema_decay": 0.5, "logger": "none", "precision": "float32", "accelerator": "cpu",
        "work_dir": str(folder / "runs"), "experiment_name": name, **changes,
    })  # fmt: skip


class Watch(L.Callback):
    """Notes the learning rate of each step, and the weights at the start of the cooldown."""

    def __init__(self):
        self.rates, self.weights, self.ema = {}, {}, {}

    def on_train_batch_start(self, trainer, module, *args):
        cooldown = module.budget.cooldown
        if cooldown is not None and trainer.global_step == cooldown.start_step:
            self.weights = {k: v.clone() for k, v in module.model.named_parameters()}
            averaging = next(x for x in trainer.callbacks if hasattr(x, "checkpoint_average"))
            self.ema = {name: x.clone() for name, x in averaging.ema.state_tensors().items()}

    def on_train_batch_end(self, trainer, module, *args):
        self.rates[trainer.global_step] = module.current_lr


@pytest.fixture(scope="module")
def stopped(folder):
    """A run that stopped early: its folder, what was watched, and its result."""
    watch = Watch()
    result = train(config(folder, "whole"), callbacks=[watch])
    return folder / "runs" / "whole", watch, result


def validations(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["val_loss"] for row in rows if "val_loss" in row}


def digest(directory):
    return weights_digest(miniformer.load(directory).model.state_dict())


def phases(run, patience=20):
    """The steps of the best model before the stop, of the stop, and of the end."""
    losses = validations(run)
    for stop in losses:
        best = min((step for step in losses if step <= stop), key=losses.get)
        if stop - best >= patience:
            return best, stop, max(losses)
    raise AssertionError("the run has not stopped")


@pytest.mark.catches("stopped_run_anneals_its_last_weights")
@pytest.mark.catches("averages_keep_the_weights_after_the_best")
def test_stopped_run_anneals_the_best_weights(stopped):
    run, watch, result = stopped
    best, stop, end = phases(run)
    assert best / 4 <= end - stop <= best
    expected = [watch.rates[stop] * (1 - i / (end - stop)) for i in range(end - stop)]
    assert [watch.rates[step] for step in range(stop + 1, end + 1)] == pytest.approx(expected)
    if result.metrics["step"] == best:  # otherwise the cooldown has found a better model
        saved = dict(miniformer.load(run / "best").model.named_parameters())
        assert all(torch.equal(saved[name], x) for name, x in watch.weights.items())
    assert watch.weights.keys() == watch.ema.keys()
    assert all(torch.equal(watch.ema[name], x) for name, x in watch.weights.items())
    assert result.metrics["val_loss"] == min(validations(run).values())


@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_stopped_run_that_is_killed_resumes_with_the_same_bits(folder, stopped, offset):
    """The kill is in the batch before the stop, in the first of the cooldown, or in the second."""
    run, _, _ = stopped
    stop = phases(run)[1]

    class Kill(L.Callback):
        def on_train_batch_start(self, trainer, module, *args):
            if trainer.global_step == stop + offset:
                os.kill(os.getpid(), signal.SIGKILL)

    name = f"killed{offset}"
    child = os.fork()
    if child == 0:
        try:
            train(config(folder, name), callbacks=[Kill()])
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    train(TrainConfig(resume=str(folder / "runs" / name)))
    again = folder / "runs" / name
    assert validations(again) == validations(run)
    assert [digest(again / x) for x in ("best", "last")] == [
        digest(run / x) for x in ("best", "last")
    ]


def test_interrupt_in_the_cooldown_is_resumed(folder, stopped):
    run, _, _ = stopped
    stop = phases(run)[1]

    class Interrupt(L.Callback):
        def on_train_batch_end(self, trainer, module, *args):
            if trainer.global_step == stop + 1:
                signal.raise_signal(signal.SIGINT)

    result = train(config(folder, "interrupted"), callbacks=[Interrupt()])
    assert result.interrupted == signal.SIGINT
    again = TrainConfig(resume=str(folder / "runs" / "interrupted"))
    train(again)
    assert digest(folder / "runs" / "interrupted" / "last") == digest(run / "last")


def test_patience_of_zero_resumes_a_stopped_run(folder, stopped):
    run, _, _ = stopped
    end = phases(run)[2]
    again = TrainConfig(resume=str(run), max_steps=end + 3, early_stopping_patience=0)
    assert train(again).metrics["training_tokens"] > stopped[2].metrics["training_tokens"]
    assert max(validations(run)) == end + 3


@pytest.mark.slow
def test_ranks_stop_at_the_same_step(folder, stopped):
    changes = {"val_check_interval": 2, "early_stopping_patience": 1, "ema_decay": None}
    train(config(folder, "ranks", devices=2, batch_size=4, lr=1e-2, **changes))
    best, stop, end = phases(folder / "runs" / "ranks", patience=2)
    assert best / 4 <= end - stop <= best
