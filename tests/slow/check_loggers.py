"""Weights & Biases and MLflow log the metrics of metrics.jsonl."""

import json
import struct

import pytest

from tests.kit import VERSE, run_python, write_jsonl

MODEL = {"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 32}
EVERY = 10  # steps from one train_loss of a logger to the next
NOT_SENT = {"step", "tokens", "padding", "seconds"}


def train(*flags, cwd):
    done = run_python("-m", "miniformer.cli", "train", *flags, cwd=cwd, timeout=280)
    assert done.returncode == 0, done.stderr
    return cwd / "runs" / "run"


def run(tmp_path, logger):
    write_jsonl(tmp_path / "train.jsonl", [VERSE] * 4)
    flags = {
        "train_path": "train.jsonl", "val_path": "train.jsonl", "tokenizer": "byte",
        "max_steps": 20, "val_check_interval": 10, "accumulate_grad_batches": 2, "batch_size": 2,
        "model_config": json.dumps(MODEL), "work_dir": "runs", "experiment_name": "run",
        "logger": logger,
    }  # fmt: skip
    args = [word for name, value in flags.items() for word in (f"--{name}", value)]
    return train(*args, cwd=tmp_path)


def written(folder):
    """Values by step and name in metrics.jsonl."""
    values = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        sparse = set() if row["step"] % EVERY == 0 else {"train_loss", "lr", "grad_norm"}
        for name in row.keys() - NOT_SENT - sparse:
            values[row["step"], name] = row[name]
    assert {(EVERY, "train_loss"), (EVERY, "val_loss"), (1, "memory_mb")} <= values.keys()
    return values


def records(path):
    """The records of a .wandb file: a LevelDB log of protocol buffers."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, buffer = path.read_bytes(), 7, b""
    while at < len(data):
        left = 32768 - at % 32768
        if left < 7:  # the end of a block
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        buffer += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a full record, or its last part
            yield Record.FromString(buffer)
            buffer = b""


def of_wandb(folder):
    logged, names = {}, set()
    for path in sorted(folder.rglob("*.wandb")):
        for record in records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                names.add((record.run.run_id, record.run.display_name, record.run.project))
            elif kind == "history":
                items = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in record.history.item
                }
                step = items.pop("trainer/global_step")
                for name, value in items.items():
                    if not name.startswith(("_", "grad_norm/")):
                        assert (step, name) not in logged
                        logged[step, name] = value
    return logged, names


def of_mlflow(folder):
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{folder.parent / 'mlflow.db'}")
    run_id = (folder / "mlflow_run_id").read_text().strip()
    run = client.get_run(run_id)
    values = {}
    for name in run.data.metrics:
        if not name.startswith("grad_norm/"):
            for point in client.get_metric_history(run_id, name):
                assert (point.step, name) not in values
                values[point.step, name] = point.value
    (experiment,) = (e for e in client.search_experiments() if e.name == "miniformer")
    (only,) = client.search_runs([experiment.experiment_id])
    assert only.info.run_id == run_id
    return values, {(run.info.run_name, run.info.status)}


@pytest.mark.filterwarnings("ignore")  # of third-party packages
@pytest.mark.parametrize(("logger", "read"), [("wandb", of_wandb), ("mlflow", of_mlflow)])
def test_logger_has_the_metrics_of_a_run_and_its_resumption(logger, read, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = run(tmp_path, logger)
    values, names = read(folder)
    assert values == pytest.approx(written(folder), rel=1e-6)  # rounded to float32 there
    assert len(names) == 1
    if logger == "mlflow":
        assert names == {("run", "FINISHED")}
    train("--resume", folder, "--max_steps", 30, cwd=tmp_path)
    values, names_after = read(folder)
    assert values == pytest.approx(written(folder), rel=1e-6)  # rounded to float32 there
    assert (30, "val_loss") in values
    assert names_after == names
