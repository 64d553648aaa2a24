"""Weight averages in a run, compared with sums over the weights of each step."""

import copy
import json
import signal

import lightning as L
import pytest
import torch
import torch.nn.functional as F

import miniformer
from miniformer import TrainConfig
from miniformer.training.run import train
from tests.kit import VERSE, write_jsonl

MODEL = {"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 64, "dropout": 0.1}
DECAY, STEPS, INTERVAL = 0.7, 14, 4
WORDS = VERSE.split()
VAL = [" ".join(WORDS[:4]), " ".join(WORDS[3:9]), WORDS[2]]


def settings(folder, **changes):
    write_jsonl(folder / "train.jsonl", [" ".join(WORDS[i % 9 :]) for i in range(30)])
    write_jsonl(folder / "val.jsonl", VAL)
    return TrainConfig(**{
        "train_path": str(folder / "train.jsonl"), "val_path": str(folder / "val.jsonl"),
        "tokenizer": "byte", "model_config": MODEL, "seq_len": 16, "batch_size": 4, "lr": 0.03,
        "optimizer": "adamw", "scheduler": "none", "max_steps": STEPS,
        "val_check_interval": INTERVAL, "accumulate_grad_batches": 2, "logger": "none",
        "precision": "float32", "work_dir": str(folder), "experiment_name": "run",
        "checkpoint_interval": 3, **changes,
    })  # fmt: skip


def loss_of(model):
    """Mean loss of the validation texts in windows of 16 tokens, without attention across texts."""
    tokenizer = miniformer.Tokenizer.train("byte", [])
    end = tokenizer.eos_id
    row = [i for text in VAL for i in (end, *tokenizer.encode(text))] + [end]
    total = start = 0
    for position in range(1, len(row)):
        if position % 16 == 0 or row[position] == end:  # the end of a window or a text
            part = torch.tensor(row[start : position + 1])
            with torch.no_grad():
                logits = model(part[None, :-1])[0]
            total += float(F.cross_entropy(logits, part[1:], reduction="sum"))
            start = position
    return total / (len(row) - 1)


class Sums(L.Callback):
    """The moving average by its formula, and the weights that validations should see."""

    def __init__(self):
        self.average, self.steps, self.raw = None, 0, None
        self.seen = []  # of each validation: step, the average, the weights in use

    def on_train_start(self, trainer, module):
        if self.average is None:
            self.average = weights_of(module.model)
            self.model = copy.deepcopy(module.model).eval()

    def on_train_batch_end(self, trainer, module, *args):
        self.raw = weights_of(module.model)
        if trainer.global_step == self.steps:
            return
        self.steps = trainer.global_step
        decay = min(DECAY, (1 + self.steps) / (10 + self.steps))
        for name, weight in self.raw.items():
            self.average[name] = decay * self.average[name] + (1 - decay) * weight

    def on_validation_start(self, trainer, module):
        used, average = weights_of(module.model), copy.deepcopy(self.average)
        self.seen.append({"step": trainer.global_step, "used": used, "average": average})

    def on_train_batch_start(self, trainer, module, *args):
        if self.raw is not None:  # a validation in between did not change the weights
            assert_same(weights_of(module.model), self.raw, rtol=0, atol=0)


class Stopped(Exception):
    pass


class Stop(L.Callback):
    """Stops training at a batch, without further writes."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step == self.step:
            raise Stopped


def weights_of(model):
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def assert_same(actual, expected, **tolerance):
    assert actual.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(
            actual[name], weight, **tolerance or {"rtol": 1e-5, "atol": 1e-7}
        )


def saved(folder, name):
    return weights_of(miniformer.load(folder / "run" / name).model)


def validations(folder):
    rows = [
        json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    return [(row["step"], row["val_loss"]) for row in rows if "val_loss" in row]


@pytest.mark.catches(
    "the_moving_average_begins_after_a_step", "validation_has_the_plain_weights",
    "training_goes_on_with_the_averages", "last_has_the_plain_weights",
    "the_moving_average_is_of_batches",
)  # fmt: skip
@pytest.mark.parametrize("stop", [None, 6])
def test_ema_weights_are_validated_and_saved(tmp_path, stop):
    """A run that stops in the seventh step resumes from the checkpoint of the sixth."""
    sums = Sums()
    config = settings(tmp_path, ema_decay=DECAY)
    if stop is not None:
        with pytest.raises(Stopped):
            train(config, callbacks=[sums, Stop(stop)])
        state = json.loads(next((tmp_path / "run").rglob("step-*/state.json")).read_text())
        assert state["step"] == sums.steps == 6
        sums.raw = None
        config = TrainConfig(resume=str(tmp_path / "run"))
    result = train(config, callbacks=[sums])
    assert [seen["step"] for seen in sums.seen] == [4, 8, 12, STEPS]
    losses = []
    for seen in sums.seen:
        assert_same(seen["used"], seen["average"])
        sums.model.load_state_dict(seen["average"], strict=False)
        losses.append(loss_of(sums.model))
    rows = validations(tmp_path)
    assert [step for step, _ in rows] == [4, 8, 12, STEPS]
    assert [loss for _, loss in rows] == pytest.approx(losses, rel=1e-5)
    best = min(range(4), key=losses.__getitem__)
    assert result.metrics["val_loss"] == pytest.approx(losses[best], rel=1e-5)
    assert_same(saved(tmp_path, "best"), sums.seen[best]["average"])
    assert_same(saved(tmp_path, "last"), sums.average)
    apart = [float((sums.raw[n] - sums.average[n]).abs().max()) for n in sums.raw]
    assert max(apart) > 1e-2, "the averaged weights differ from the plain ones"


@pytest.mark.catches("the_mean_leaves_out_the_last_validation")
@pytest.mark.parametrize("ema_decay", [None, DECAY])
def test_checkpoint_average_is_the_mean_of_validated_weights(tmp_path, ema_decay):
    sums = Sums()
    train(settings(tmp_path, ema_decay=ema_decay, average_checkpoints=3), callbacks=[sums])
    *seen, averaged = sums.seen
    assert [validation["step"] for validation in seen] == [4, 8, 12, STEPS]
    kind = "used" if ema_decay is None else "average"
    mean = {
        name: torch.stack([validation[kind][name] for validation in seen[-3:]]).mean(0)
        for name in sums.raw
    }
    assert_same(averaged["used"], mean)
    sums.model.load_state_dict(mean, strict=False)
    assert validations(tmp_path)[-1] == (STEPS, pytest.approx(loss_of(sums.model), rel=1e-5))
    losses = [loss for _, loss in validations(tmp_path)]
    best = min(range(5), key=losses.__getitem__)
    assert_same(saved(tmp_path, "best"), mean if best == 4 else seen[best][kind])
    assert_same(saved(tmp_path, "last"), sums.raw if ema_decay is None else sums.average)


@pytest.mark.catches("schedule_free_validates_the_weights_in_training")
def test_schedule_free_saves_its_averaged_weights(tmp_path):
    """Gradients are taken at y = (1 - b) z + b x, b = 0.9; x is validated and saved."""

    class Averages(L.Callback):
        def __init__(self):
            self.x, self.seen = None, []

        def on_train_batch_end(self, trainer, module, *args):
            (optimizer,) = trainer.optimizers
            states = {id(p): state["z"] for p, state in optimizer.state.items()}
            self.x = {
                name: ((p - (1 - 0.9) * states[id(p)]) / 0.9).detach().clone()
                for name, p in module.model.named_parameters()
            }

        def on_validation_start(self, trainer, module):
            self.seen.append((weights_of(module.model), self.x))

    averages = Averages()
    config = settings(tmp_path, optimizer="schedulefree", accumulate_grad_batches=1)
    result = train(config, callbacks=[averages])
    assert len(averages.seen) == 4
    for used, expected in averages.seen:
        assert_same(used, expected, rtol=1e-4, atol=1e-5)
    assert_same(saved(tmp_path, "last"), averages.x, rtol=1e-4, atol=1e-5)
    rows = validations(tmp_path)
    best = min(range(4), key=lambda i: rows[i][1])
    assert result.metrics["step"] == rows[best][0]
    assert_same(saved(tmp_path, "best"), averages.seen[best][1], rtol=1e-4, atol=1e-5)


class Signaled(L.Callback):
    """Interrupts a run after a step, as Ctrl-C does."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step:
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.catches("the_closing_validation_has_the_plain_weights")
@pytest.mark.parametrize(
    "changes",
    [
        {"ema_decay": DECAY},
        {"optimizer": "schedulefree"},
        {"average_checkpoints": 2},
        {"average_checkpoints": 2, "ema_decay": DECAY},
    ],
    ids=str,
)
def test_run_ended_at_its_interruption_equals_uninterrupted_run(tmp_path, changes):
    """Its only validation of the last weights is after training, not within."""
    changes = {"accumulate_grad_batches": 1, "val_check_interval": 2, **changes}
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    uninterrupted = train(settings(tmp_path / "whole", **changes, max_steps=5))
    config = settings(tmp_path / "parts", **changes, max_steps=50)
    assert train(config, callbacks=[Signaled(5)]).interrupted == signal.SIGTERM
    result = train(TrainConfig(resume=str(tmp_path / "parts" / "run"), max_steps=5))
    assert validations(tmp_path / "parts") == validations(tmp_path / "whole")
    for name in ("best", "last"):
        expected = saved(tmp_path / "whole", name)
        assert_same(saved(tmp_path / "parts", name), expected, rtol=0, atol=0)
    timed = {"seconds", "training_tokens"}
    assert {k: v for k, v in result.metrics.items() if k not in timed} == {
        k: v for k, v in uninterrupted.metrics.items() if k not in timed
    }
    tail = validations(tmp_path / "parts")[-1]
    last = miniformer.load(tmp_path / "parts" / "run" / "last").model
    if "average_checkpoints" not in changes:
        assert tail == (5, pytest.approx(loss_of(last), rel=1e-5))
