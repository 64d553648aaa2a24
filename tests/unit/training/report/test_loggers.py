"""Loggers: each gets the metrics of every step, and a resumed run continues its log."""

import json
import types

import lightning as L
import pytest

from miniformer import TrainConfig
from miniformer.training.report import loggers
from miniformer.training.report.loggers import csv, finish_loggers
from miniformer.training.run import train
from tests.kit import VERSE, write_jsonl


def run(tmp_path, logger, **changes):
    write_jsonl(tmp_path / "train.jsonl", [VERSE] * 4)
    return train(TrainConfig(**{
        "train_path": str(tmp_path / "train.jsonl"), "tokenizer": "byte", "max_steps": 20,
        "model_config": {"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 16},
        "work_dir": str(tmp_path / "runs"), "experiment_name": "run", "logger": logger, **changes,
    }))  # fmt: skip


def steps_of(folder):
    lines = (folder / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("step")
    return {int(line.split(",")[column]) for line in lines[1:]}


@pytest.mark.catches("a_longer_run_has_no_rows_until_its_end")
def test_csv_logger_has_the_metrics_of_a_run_and_its_resumption(tmp_path):
    folder = run(tmp_path, "csv").folder
    assert steps_of(folder / "csv") == set(range(1, 21))
    train(TrainConfig(resume=str(folder), max_steps=30))
    assert steps_of(folder / "csv") == set(range(1, 21))
    assert steps_of(folder / "csv-2") == set(range(21, 31))
    header = (folder / "csv" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert set(header) == {
        "step", "train_loss", "lr", "grad_norm", "tokens_per_second", "waiting", "mfu",
        "memory_mb", "grad_norm/embedding", "grad_norm/layers.0", "grad_norm/final_norm",
    }  # fmt: skip


def test_tensorboard_logger_has_the_metrics(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run(tmp_path, "tensorboard").folder
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    losses = {event.step: event.value for event in events.Scalars("train_loss")}
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    written = {row["step"]: row["train_loss"] for row in rows if row["step"] in (10, 20)}
    assert losses == pytest.approx(written)


def test_no_logger_disables_the_lightning_logger(tmp_path):
    trainer = L.Trainer(logger=loggers.none(tmp_path), default_root_dir=tmp_path, accelerator="cpu")
    assert trainer.loggers == []


class Noted:
    """Stands in for a logger of Lightning's whose service is not installed: notes its arguments."""

    def __init__(self, **arguments):
        self.arguments = arguments
        self.run_id = arguments.get("run_id") or "new"


def test_wandb_logger_has_the_run_id_of_the_folder(tmp_path, monkeypatch):
    """The arguments only: `make slow` has a run with W&B itself."""
    monkeypatch.setattr(loggers, "WandbLogger", Noted)
    first, again, other_folder = (
        loggers.wandb(tmp_path / name).arguments for name in ("run", "run", "run-2")
    )
    assert first == again
    assert first["id"] != other_folder["id"]
    assert (first["name"], first["resume"], first["save_dir"]) == ("run", "allow", tmp_path / "run")


@pytest.mark.catches("mlflow_begins_a_new_run")
def test_mlflow_logger_has_the_run_id_of_the_folder(tmp_path, monkeypatch):
    """The arguments only: `make slow` has a run with MLflow itself."""
    monkeypatch.setattr(loggers, "MLFlowLogger", Noted)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "run"
    folder.mkdir()
    first = loggers.mlflow(folder).arguments
    assert first["run_id"] is None
    assert first["tracking_uri"] == f"sqlite:///{tmp_path.resolve() / 'mlflow.db'}"
    assert (folder / "mlflow_run_id").read_text() == "new\n"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://somewhere")
    again = loggers.mlflow(folder).arguments
    assert (again["run_id"], again["tracking_uri"]) == ("new", "http://somewhere")


def test_finish_loggers_ends_wandb_runs_only():
    class Stub(L.pytorch.loggers.WandbLogger):
        def __init__(self):
            self.finished = 0

        @property
        def experiment(self):
            return types.SimpleNamespace(finish=self.note)

        def note(self):
            self.finished += 1

    stub = Stub()
    finish_loggers([L.pytorch.loggers.CSVLogger("."), stub])
    assert stub.finished == 1


@pytest.mark.catches("csv_of_a_resumed_run_overwrites_the_first")
def test_csv_logger_folder_is_new_for_each_resumption(tmp_path):
    for name in ("csv", "csv-2", "csv-3"):
        logger = csv(tmp_path)
        assert logger.log_dir == str(tmp_path / name)
        (tmp_path / name).mkdir()
