"""`miniformer.train(..., in_memory=True)`: from weights and optimizer state, without files."""

import copy
import io
import os
import random
import signal

import lightning
import numpy as np
import pytest
import torch
from rich.console import Console

import miniformer
from miniformer import Pipeline, Transformer, TransformerConfig, UserError
from miniformer.data.reading.records import as_records
from miniformer.tasks.classification import Classification
from miniformer.training.isolation import isolated_run
from tests.kit import run_python

RECORDS = [
    {"input": [[float(x), float(y), 1.0]] * (1 + x), "label": "high" if x + y > 3 else "low"}
    for x in range(4)
    for y in range(4)
]
CONFIG = {"d_model": 16, "n_heads": 2, "n_layers": 1, "dropout": 0.0}
STEPS = {
    "in_memory": True, "precision": "float32", "optimizer": "adamw", "lr": 0.01, "batch_size": 99,
    "scheduler": "none", "weight_decay": 0.0, "gradient_clip_val": 0.0,
}  # fmt: skip


def make_pipeline(seed=7):
    torch.manual_seed(seed)
    task = Classification(standardize=False).fit(make_records())
    config = TransformerConfig(input_dim=3, output_dim=2, **CONFIG)
    return Pipeline(Transformer(config), None, task=task)


def make_records():
    return as_records(RECORDS, Classification().schema)


@pytest.fixture
def start():
    return make_pipeline()


def weights(result):
    pipeline = getattr(result, "pipeline", result)
    return {name: x.detach().clone() for name, x in pipeline.model.state_dict().items()}


def outputs(result):
    model = getattr(result, "pipeline", result).model
    with torch.no_grad():
        return torch.cat([model.classify(torch.tensor([x["input"]])) for x in RECORDS])


def largest_difference(first, second):
    """Of outputs: Adam divides gradients that are 0 but for rounding, as of key biases."""
    return float((outputs(first) - outputs(second)).abs().max())


def plain_training(pipeline, steps):
    """Full-batch Adam on the mean cross-entropy, one record at a time."""
    model = copy.deepcopy(pipeline.model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.9, 0.95), eps=1e-8)
    for _ in range(steps):
        losses = [
            -model.classify(torch.tensor([record["input"]])).log_softmax(-1)[
                0, pipeline.task.classes.index(record["label"])
            ]
            for record in RECORDS
        ]
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
    return Pipeline(model, None, task=pipeline.task)


@pytest.mark.catches("a_start_in_memory_has_new_weights")
def test_training_in_memory_equals_a_plain_loop(start):
    result = miniformer.train(RECORDS, start=start, max_steps=3, **STEPS)
    assert largest_difference(result, plain_training(start, 3)) < 1e-5
    assert largest_difference(result, start) > 1e-3
    assert (result.steps, result.tokens) == (3, 3 * sum(len(x["input"]) for x in RECORDS))


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "schedulefree"])
@pytest.mark.catches("an_optimizer_in_memory_starts_anew")
def test_training_in_two_parts_equals_training_at_once(start, optimizer):
    options = {**STEPS, "optimizer": optimizer}
    first = miniformer.train(RECORDS, start=start, max_steps=2, **options)
    second = miniformer.train(RECORDS, start=first, max_steps=2, **options)
    at_once = miniformer.train(RECORDS, start=start, max_steps=4, **options)
    assert largest_difference(second, at_once) < 1e-5
    anew = miniformer.train(RECORDS, start=first.pipeline, max_steps=2, **options)
    assert largest_difference(anew, at_once) > 1e-3


@pytest.mark.catches("training_in_memory_changes_its_start", "random_states_leak_from_runs")
def test_training_in_memory_changes_nothing_else(start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    variables = dict(os.environ)
    before = weights(start)
    for draw in (torch.manual_seed, np.random.seed, random.seed):
        draw(1)
    expected = torch.rand(3).tolist(), np.random.rand(), random.random()
    for draw in (torch.manual_seed, np.random.seed, random.seed):
        draw(1)
    miniformer.train(RECORDS, start=start, max_steps=1, deterministic=True, **STEPS)
    assert (torch.rand(3).tolist(), np.random.rand(), random.random()) == expected
    assert not torch.are_deterministic_algorithms_enabled()
    assert dict(os.environ) == variables
    assert list(tmp_path.iterdir()) == []
    assert all(torch.equal(x, before[name]) for name, x in weights(start).items())


RUN = """
import hashlib
import miniformer

texts = [{"text": f"{n} and {n} is {2 * n}"} for n in range(40)]
model = {"d_model": 16, "n_heads": 2, "n_layers": 1, "dropout": 0.1}
options = {"tokenizer": "char", "precision": "float32", "model_config": model, "seq_len": 32}

def digest(**settings):
    result = miniformer.train(texts, max_steps=4, val_share=0, **options, **settings)
    state = result.pipeline.model.state_dict()
    return hashlib.sha256(b"".join(x.numpy().tobytes() for x in state.values())).hexdigest()
"""


@pytest.mark.catches("a_run_depends_on_earlier_draws")
def test_a_run_has_the_same_bits_first_fourth_and_alone(tmp_path, monkeypatch):
    """The third run writes a run folder."""
    path = tmp_path / "run.py"
    path.write_text(RUN + "print(digest(in_memory=True, threads=1))\n")
    alone = run_python(path).stdout.strip()
    names: dict = {}
    exec(RUN, names)
    first = names["digest"](in_memory=True, threads=1)
    pairs = [{"source": "a b", "target": "b a"}, {"source": "c", "target": "c c"}] * 8
    settings = {**names["options"], "seed": 3, "deterministic": True, "optimizer": "adamw"}
    miniformer.train(pairs, in_memory=True, task="seq2seq", max_steps=2, **settings)
    in_folder = names["digest"](work_dir=tmp_path, logger="none", quiet=True, threads=1)
    fourth = names["digest"](in_memory=True, threads=1)
    assert [first, in_folder, fourth] == [alone] * 3


@pytest.mark.catches("the_best_weights_in_memory_are_the_last")
def test_training_in_memory_with_validation_returns_the_best_weights(start):
    wrong = [{**x, "label": "low" if x["label"] == "high" else "high"} for x in RECORDS]
    result = miniformer.train(
        RECORDS, val=wrong, start=start, max_steps=8, val_check_interval=2,
        checkpoint_metric="loss", early_stopping_patience=0, **{**STEPS, "lr": 0.03},
    )  # fmt: skip
    losses = [row["val_loss"] for row in result.validations]
    assert [row["step"] for row in result.validations] == [2, 4, 6, 8]
    assert result.metrics["val_loss"] == min(losses) < losses[-1]
    evaluated = result.pipeline.evaluate(wrong).metrics["loss"]
    assert evaluated == pytest.approx(min(losses), rel=1e-6)


def test_training_in_memory_reports_why_a_callback_stopped_it(start):
    class Stop(lightning.Callback):
        def on_train_batch_end(self, trainer, *args):
            if trainer.global_step == 2:
                miniformer.stop_run(trainer, "two steps are enough")

    result = miniformer.train(RECORDS, start=start, max_steps=9, callbacks=[Stop()], **STEPS)
    assert (result.steps, result.stop_reason) == (2, "two steps are enough")


def test_ctrl_c_ends_training_in_memory(start):
    class Interrupt(lightning.Callback):
        def on_train_batch_end(self, *args):
            signal.raise_signal(signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        miniformer.train(RECORDS, start=start, max_steps=3, callbacks=[Interrupt()], **STEPS)
    assert signal.getsignal(signal.SIGINT) is handler


def test_isolated_run_restores_the_process_after_an_error():
    torch.manual_seed(5)
    expected = torch.rand(2)

    @isolated_run()
    def fail():
        torch.manual_seed(7)
        torch.use_deterministic_algorithms(True)
        raise ZeroDivisionError

    torch.manual_seed(5)
    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.equal(torch.rand(2), expected)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"work_dir": "runs"},
            "work_dir has no effect with in_memory=True, which trains one model",
        ),
        ({"folds": 2}, "folds has no effect with in_memory=True"),
        ({"devices": 2}, "in_memory=True trains on one device; set devices=1"),
        ({"model_config": {"d_model": 8}}, "model_config has no effect with start, which has a"),
        ({"seq_len": 9999}, "seq_len=9999 is longer than the model's max_seq_len=1024; lower"),
    ],
)
def test_settings_without_effect_in_memory_are_refused(start, settings, message):
    with pytest.raises(UserError, match=message):
        miniformer.train(RECORDS, start=start, max_steps=1, in_memory=True, **settings)


@pytest.mark.parametrize("name", ["start", "optimizer_state"])
def test_a_run_with_a_folder_refuses_arguments_of_memory(start, name):
    with pytest.raises(UserError, match=f"train: {name} needs in_memory=True"):
        miniformer.train(RECORDS, max_steps=1, **{name: start})


@pytest.mark.catches("any_optimizer_state_is_loaded")
def test_the_optimizer_state_of_another_model_or_optimizer_is_refused(start):
    state = miniformer.train(RECORDS, start=start, max_steps=1, **STEPS).optimizer_state
    assert repr(state).startswith("OptimizerState(")
    muon = {**STEPS, "optimizer": "muon"}
    with pytest.raises(UserError, match="optimizer_state is of another optimizer; leave it out"):
        miniformer.train(RECORDS, start=start, optimizer_state=state, max_steps=1, **muon)
    config = TransformerConfig(input_dim=3, output_dim=2, **{**CONFIG, "d_model": 32})
    larger = Pipeline(Transformer(config), None, task=start.task)
    with pytest.raises(UserError, match=r"in this model it is .*; the state is of another model"):
        miniformer.train(RECORDS, start=larger, optimizer_state=state, max_steps=1, **STEPS)


@pytest.mark.catches("a_start_has_the_lr_of_a_new_model")
def test_a_start_has_a_tenth_of_the_learning_rate(start):
    console = Console(file=io.StringIO(), width=200)
    options = {"in_memory": True, "max_steps": 1, "optimizer": "adamw"}
    miniformer.train(RECORDS, start=start, console=console, **options)
    assert "lr: 0.0001 (a tenth of the default of adamw" in console.file.getvalue()


@pytest.mark.parametrize("value", ["a-directory", torch.nn.Linear(1, 1)])
def test_a_start_that_is_no_pipeline_is_refused(value):
    with pytest.raises(UserError, match="start must be a pipeline or a result of"):
        miniformer.train(RECORDS, start=value, max_steps=1, **STEPS)


@pytest.mark.catches("epochs_end_with_the_batches_of_the_first")
def test_each_epoch_has_all_records():
    """Two lengths are sorted in either order, which can give another number of batches."""
    dice = np.random.default_rng(25)
    records = [{"source": "a" * x, "target": "b" * y} for x, y in dice.integers(1, 30, (40, 2))]
    rows, batches = {}, {}

    class Count(lightning.Callback):
        def on_train_batch_start(self, trainer, module, batch, index):
            epoch = batch["about"]["place"]["epoch"]
            rows[epoch] = rows.get(epoch, 0) + len(batch["source"])
            batches[epoch] = batches.get(epoch, 0) + 1

    options = {"batch_size": 3, "tokenizer": "byte", "max_epochs": 4, "model_config": CONFIG}
    miniformer.train(records, task="seq2seq", in_memory=True, callbacks=[Count()], **options)
    assert rows == dict.fromkeys(range(4), 40)
    assert max(batches.values()) > batches[0]
