"""Two devices give the results of one, for each task, model, strategy and checkpointing; float32.

Two processes on the CPU stand for devices. One pair of them makes all runs of a strategy, since
starting processes takes longer than a run. Dropout is on: a callback seeds it with the position of
each batch in the data, so that it does not depend on the process that trains on the batch.
"""

import itertools
import json
from pathlib import Path

import lightning as L
import pytest
import torch

import miniformer
from miniformer import TrainConfig
from miniformer.training.distributed.launcher import launch, rank, worker_context
from miniformer.training.run import train
from tests.kit import VERSE, write_jsonl
from tests.kit.pictures import NO_PICTURES, draw_pictures

pytestmark = pytest.mark.usefixtures("fast_launch")

MODEL = {"d_model": 16, "n_heads": 2, "n_layers": 2, "max_seq_len": 48, "dropout": 0.1}
MODEL |= {"bias": False}  # that of a key has no gradient but rounding, which Adam would blow up
WORDS = VERSE.split()
TASKS = {
    "language_modeling": {"task": "language_modeling", "train_path": "texts"},
    "prefix": {"task": "language_modeling", "model": "seq2seq", "train_path": "texts"},
    "masked_lm": {"task": "masked_lm", "train_path": "texts"},
    "classification": {"task": "classification", "train_path": "labels"},
    "regression": {"task": "regression", "train_path": "values"},
    "seq2seq": {"task": "seq2seq", "train_path": "pairs"},
}
TESTED = ("classification", "seq2seq")  # also on test data, where a seq2seq model generates
# Batches in a step of each device, and activation checkpointing.
WAYS = [(1, "selective"), (2, "none"), (2, "full")]
# Each task with one of them in `make test`; the others are slow.
QUICK = {(task, *WAYS[number % len(WAYS)]) for number, task in enumerate(TASKS)}
CATCHES = {
    ("classification", 2, "none"): pytest.mark.catches("loss_is_divided_on_each_rank"),
    ("seq2seq", 2, "full"): pytest.mark.catches("ranks_measure_with_sharded_weights"),
}


def write_data(folder):
    # 24 or 26 records in batches of 4: an epoch ends within a run, and its last turn is not full.
    write_jsonl(folder / "texts.jsonl", [" ".join(WORDS[i % 9 :]) for i in range(24)])
    inputs = [" ".join(WORDS[i % 9 :][: 1 + i % 7]) for i in range(26)]
    rows = {
        "labels": [{"input": text, "label": i % 2} for i, text in enumerate(inputs)],
        "values": [{"input": text, "value": float(i % 7)} for i, text in enumerate(inputs)],
        "pairs": [{"source": text, "target": text[: 5 + i]} for i, text in enumerate(inputs)],
    }
    for name, records in rows.items():
        lines = "".join(json.dumps(row) + "\n" for row in records)
        (folder / f"{name}.jsonl").write_text(lines)


def config(folder, name, task, accumulated, **changes):
    settings = dict(TASKS[task])
    path = str(folder / f"{settings['train_path']}.jsonl")
    settings |= {"train_path": path, "val_path": path}
    if task in TESTED:
        settings["test_path"] = path
    if accumulated == 2:
        settings["ema_decay"] = 0.9
        if task in ("classification", "seq2seq"):
            settings["task_config"] = {"r_drop": 1.0, "label_smoothing": 0.1}
    return TrainConfig(**{
        "tokenizer": "bpe", "model_config": {**MODEL, "vocab_size": 300}, "seq_len": 24,
        "batch_size": 4, "lr": 1e-3, "max_steps": 5, "val_check_interval": 5, "logger": "none",
        "optimizer": "adamw", "precision": "float32", "work_dir": str(folder / "runs"),
        "experiment_name": name, **settings, **changes,
    })  # fmt: skip


class SeedByPlace(L.Callback):
    """Seeds dropout with the position of the batch in the data."""

    def on_train_batch_start(self, trainer, module, batch, index):
        position = batch["about"]["place"]
        torch.manual_seed(1000 * position["epoch"] + position["batch"])


def run(settings):
    """Trains and saves the metrics in the run folder."""
    result = train(settings, callbacks=[SeedByPlace()])
    if rank() == 0:
        (result.folder / "metrics.json").write_text(json.dumps(result.metrics))


def cases():
    """Parameters of the test: tasks and ways to save memory."""
    for task, (accumulated, checkpointing) in itertools.product(TASKS, WAYS):
        case = (task, accumulated, checkpointing)
        marks = [pytest.mark.slow] if case not in QUICK else []
        if case in CATCHES:
            marks.append(CATCHES[case])
        yield pytest.param(*case, marks=marks)


def worker(settings, path, cases):
    """All runs of a strategy."""
    with worker_context(path) as write_outcome:
        torch.set_num_threads(1)
        draw_pictures(pytest.MonkeyPatch(), NO_PICTURES)
        given = TrainConfig.from_dict(settings)
        folder = Path(given.work_dir).parent
        for task, accumulated, checkpointing in cases:
            name = f"{task}-{accumulated}-{checkpointing}-{given.strategy}"
            run(config(folder, name, task, accumulated, devices=2, strategy=given.strategy,
                       accumulate_grad_batches=accumulated,
                       activation_checkpointing=checkpointing))  # fmt: skip
        write_outcome({"done": True})


@pytest.fixture(scope="module")
def selected(request):
    """The cases of the tests that are to be run."""
    names = ("task", "accumulated", "checkpointing")
    selected_cases = {
        tuple(item.callspec.params[name] for name in names)
        for item in request.session.items
        if item.module.__name__ == __name__
    }
    return sorted(selected_cases)


@pytest.fixture(scope="module")
def alone(selected, tmp_path_factory):
    """The runs of one process, with twice the batches in a step."""
    folder = tmp_path_factory.mktemp("matrix")
    write_data(folder)
    for task, accumulated in sorted({case[:2] for case in selected}):
        name, batches = f"{task}-{accumulated}", 2 * accumulated
        run(config(folder, name, task, accumulated, accumulate_grad_batches=batches))
    return folder


@pytest.fixture(scope="module")
def together(alone, selected):
    """Makes the runs of a strategy when a test first asks for them."""
    ended = {}

    def make(strategy):
        if strategy not in ended:
            settings = config(alone, "launch", "prefix", 1, devices=2, strategy=strategy)
            ended[strategy] = "failed"
            launch(settings, worker, settings.to_dict(), selected)
            ended[strategy] = "made"
        assert ended[strategy] == "made"

    return make


def read_metrics(folder):
    """All metrics by step and name."""
    unsteady = ("seconds", "tokens_per_second", "waiting", "mfu", "memory_mb", "step")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows.append({"step": "end", **json.loads((folder / "metrics.json").read_text())})
    return {
        (row["step"], name): value
        for row in rows
        for name, value in row.items()
        if name not in unsteady
    }


@pytest.mark.parametrize(("task", "accumulated", "checkpointing"), list(cases()))
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"], scope="module")
def test_two_devices_match_one_device(alone, together, strategy, task, accumulated, checkpointing):
    together(strategy)
    one_device = alone / "runs" / f"{task}-{accumulated}"
    two = alone / "runs" / f"{task}-{accumulated}-{checkpointing}-{strategy}"
    expected, result = read_metrics(one_device), read_metrics(two)
    assert result.keys() == expected.keys()
    for step in range(1, 6):
        assert (step, "train_loss") in expected
    for key, value in expected.items():
        assert result[key] == pytest.approx(value, rel=1e-5, abs=1e-5), key
    for name in ("best", "last"):
        weights = [
            miniformer.load(folder / name).model.state_dict() for folder in (one_device, two)
        ]
        for key, tensor in weights[0].items():
            torch.testing.assert_close(
                weights[1][key], tensor, rtol=0, atol=1e-5, msg=f"{name}: {key}"
            )
