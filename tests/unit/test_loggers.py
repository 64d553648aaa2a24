"""Where figures go: each logger gets those of every step, and a resumed run goes on there."""

import json
import shutil

import pytest

from miniformer import TrainConfig
from miniformer.training import loggers
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


def test_csv_has_the_figures_of_the_run_and_of_its_resumption(tmp_path):
    folder = run(tmp_path, "csv").folder
    assert {10, 20} <= steps_of(folder / "csv")
    train(TrainConfig(resume=str(folder), max_steps=30))
    assert max(steps_of(folder / "csv")) == 20
    assert 30 in steps_of(folder / "csv-2")
    header = (folder / "csv" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train_loss", "lr", "grad_norm", "tokens_per_second", "memory_mb"} <= set(header)
    assert "grad_norm/layers.0" in header


def test_tensorboard_has_the_figures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run(tmp_path, "tensorboard").folder
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    losses = {event.step: event.value for event in events.Scalars("train_loss")}
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    written = {row["step"]: row["train_loss"] for row in rows}
    assert losses == pytest.approx({step: written[step] for step in losses})
    assert 20 in losses


@pytest.mark.filterwarnings("ignore")
def test_weights_and_biases_works_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = run(tmp_path, "wandb").folder
    (file,) = folder.rglob("*.wandb")
    assert file.stat().st_size > 1000
    assert loggers.wandb(folder)._id == loggers.wandb(folder)._id
    assert loggers.wandb(folder)._id != loggers.wandb(folder.parent / "other")._id


@pytest.mark.filterwarnings("ignore")
def test_mlflow_works_in_a_local_database(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = run(tmp_path, "mlflow").folder
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    run_id = (folder / "mlflow_run_id").read_text().strip()
    history = client.get_metric_history(run_id, "train_loss")
    assert {10, 20} <= {point.step for point in history}
    train(TrainConfig(resume=str(folder), max_steps=30))
    history = client.get_metric_history(run_id, "train_loss")
    assert 30 in {point.step for point in history}
    shutil.rmtree(folder)
