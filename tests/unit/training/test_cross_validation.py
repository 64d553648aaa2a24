"""Cross-validation: out-of-fold predictions, table, interruption and resuming."""

import io
import json
import signal
from pathlib import Path

import lightning as L
import numpy as np
import pytest
from rich.console import Console

import miniformer
from miniformer import TrainConfig, trainer
from miniformer.config import UserError
from miniformer.training.cross_validation import cross_validate
from miniformer.training.run import train

SHAPE = {"d_model": 8, "n_heads": 2, "n_layers": 1, "max_seq_len": 16, "dropout": 0.1}


class Stop(L.Callback):
    """Ctrl-C at a step of the second fold."""

    def on_train_batch_end(self, trainer, module, *args):
        if "fold-2" in trainer.default_root_dir and trainer.global_step == 5:
            signal.raise_signal(signal.SIGINT)


def config_for(folder, **changes):
    return TrainConfig(
        **{
            "train_path": str(folder / "t.jsonl"), "task": "classification", "tokenizer": "byte",
            "max_steps": 8, "folds": 2, "logger": "none", "precision": "float32", "batch_size": 8,
            "val_check_interval": 4, "model_config": SHAPE, "work_dir": str(folder / "runs"),
            "early_stopping_patience": 0, "checkpoint_interval": 2, **changes,
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with data, an uninterrupted run, and an interrupted one that is resumed."""
    folder = tmp_path_factory.mktemp("folds")
    random = np.random.default_rng(0)
    texts = ["".join(random.choice(list("abcd"), 6)) for _ in range(60)]
    rows = [{"id": n, "input": t, "label": "ab"["a" in t]} for n, t in enumerate(texts)]
    rows.append({"id": 60, "input": "once", "label": "single"})
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = config_for(folder, experiment_name="reference").given_fields()
    reference = miniformer.train(config.pop("train_path"), **config)
    stopped = cross_validate(config_for(folder, experiment_name="stopped"), callbacks=[Stop])
    first = folder / "runs/stopped/fold-1/best/model.safetensors"
    before = first.stat().st_mtime_ns
    console = Console(file=(output := io.StringIO()), width=500)
    resumed = cross_validate(TrainConfig(resume=str(stopped.folder)), console=console)
    assert first.stat().st_mtime_ns == before, "a complete fold is not repeated"
    return folder, rows, reference, stopped, resumed, output.getvalue()


@pytest.mark.catches("predictions_are_of_the_training_records")
def test_out_of_fold_predictions_are_of_the_model_that_did_not_see_them(runs):
    _, _, reference, *_ = runs
    lines = [json.loads(line) for line in (reference.folder / "oof.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == list(range(61))
    for fold, model in enumerate(reference.models, 1):
        held_out = [line for line in lines if line["fold"] == fold]
        assert len(held_out) in (30, 31)
        answers = miniformer.load(model).predict([line["input"] for line in held_out])
        assert [line["prediction"] for line in held_out] == [item["label"] for item in answers]
        accuracy = np.mean([line["prediction"] == line["label"] for line in held_out])
        assert reference.metrics[fold - 1]["val_accuracy"] == pytest.approx(accuracy)
        for line, answer in zip(held_out, answers, strict=True):
            assert line["scores"] == pytest.approx(answer["scores"], abs=1e-5)


@pytest.mark.catches("train_with_folds_returns_no_predictions")
def test_train_with_folds_returns_metrics_and_predictions(runs):
    _, rows, reference, stopped, *_ = runs
    lines = reference.predictions()
    assert [{"id": x["id"], "input": x["input"], "label": x["label"]} for x in lines] == rows
    values = [metrics["val_accuracy"] for metrics in reference.metrics]
    accuracy = f"val_accuracy={np.mean(values):.4g}±{np.std(values, ddof=1):.2g}"
    start = f"CrossValidationResult(folder='{reference.folder}', folds=2, {accuracy}, "
    assert repr(reference).startswith(start)
    assert repr(stopped).endswith(", interrupted)")


def test_cross_validation_table_has_mean_and_standard_deviation(runs):
    _, _, reference, *_ = runs
    table = json.loads((reference.folder / "folds.json").read_text())
    values = [row["metrics"]["val_accuracy"] for row in table["folds"]]
    assert table["mean"]["val_accuracy"] == pytest.approx(np.mean(values))
    assert table["std"]["val_accuracy"] == pytest.approx(np.std(values, ddof=1))
    assert [row["records"] for row in table["folds"]] in ([31, 30], [30, 31])


@pytest.mark.catches("folds_start_again")
def test_interrupted_cross_validation_resumes_with_the_same_results(runs):
    _, _, reference, stopped, resumed, output = runs
    assert f"resuming from {stopped.folder}/fold-2/checkpoints/" in output
    assert stopped.interrupted == signal.SIGINT
    assert len(stopped.metrics) == 1
    assert resumed.interrupted is None
    for expected, actual in zip(reference.metrics, resumed.metrics, strict=True):
        assert actual["val_loss"] == expected["val_loss"]
    for name in ("oof.jsonl",):
        assert (resumed.folder / name).read_bytes() == (reference.folder / name).read_bytes()


def test_each_fold_has_all_classes(runs):
    """A class of one record is in the training data of one fold only."""
    _, _, reference, *_ = runs
    for model in reference.models:
        assert miniformer.load(model).task.classes == ["a", "b", "single"]


def test_single_fold_is_a_run_of_its_own(runs):
    folder, _, reference, *_ = runs
    result = train(config_for(folder, fold=2, experiment_name="alone"))
    assert result.metrics["val_loss"] == reference.metrics[1]["val_loss"]


def test_complete_cross_validation_prints_its_table(runs, capsys):
    _, _, reference, *_ = runs
    assert trainer.main(["--resume", str(reference.folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("validation  accuracy  macro f1") for line in lines)
    assert [line.split()[0] for line in lines if line[:4] in ("mean", "std ")] == ["mean", "std"]
    folder = str(reference.folder)  # as long as the system's name of temporary folders
    assert [line for line in lines if len(line.replace(folder, "runs/reference")) > 80] == []


def test_resumed_cross_validation_refuses_other_settings(runs, capsys):
    _, _, reference, *_ = runs
    assert trainer.main(["--resume", str(reference.folder), "--max_steps", "9"]) == 2
    assert "all folds of" in (error := capsys.readouterr().err)
    assert "leave max_steps out" in error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"val_path": "v.jsonl"}, "folds validate on parts of train_path; leave val_path out"),
        ({"val_share": 0.2}, "folds and val_share both give validation data"),
        ({"fold": 3}, "fold=3 must be at most folds=2"),
        ({"folds": None, "fold": 1}, "fold is one of several folds; set folds, too"),
        ({"streaming": True}, "folds has no effect with streaming"),
        ({"folds": 1}, "folds must be at least 2"),
    ],
)
def test_fold_settings_reject_conflicts(changes, message):
    with pytest.raises(UserError, match=message):
        config_for(Path(), **changes)


def test_train_of_all_folds_names_the_function_for_it():
    with pytest.raises(UserError, match=r"call miniformer\.train, or set fold"):
        train(config_for(Path()))
