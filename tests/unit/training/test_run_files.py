"""Files in the folder of a run, and what other processes read from them."""

import itertools
import json
import math
import os
import random
import types

import numpy as np
import pytest
import torch

from miniformer.config import GenerationConfig, UserError
from miniformer.model.seq2seq import Seq2SeqTransformer
from miniformer.model.transformer import Transformer
from miniformer.tasks.language_modeling import LanguageModeling
from miniformer.train_config import TrainConfig
from miniformer.training.callbacks.generation_samples import SampleGeneration
from miniformer.training.callbacks.validation import BestModelCheckpoint
from miniformer.training.distributed.launcher import worker_context
from miniformer.training.report import model_card
from miniformer.training.report.artifacts import RunArtifacts
from miniformer.training.report.loggers import csv
from miniformer.training.resume import restart_folder, storage
from miniformer.training.resume.config import CONFIG_FILE, resume_config
from miniformer.training.resume.rng_state import get_rng_state, set_rng_state
from miniformer.training.resume.verify import weights_digest
from miniformer.training.setup import auto_tune, pretraining
from miniformer.training.setup.run_folder import create_run_folder
from miniformer.utils.jsonl import append_row, is_due, read_rows
from tests.kit import tiny_config, tiny_model


def test_log_rows_are_spread_over_a_run():
    assert is_due(0.0, -1.0, 8)  # the first
    assert not is_due(0.5, 0.4375, 8)
    assert is_due(0.5, 0.375, 8)
    assert is_due(0.5, 0.25, 8)
    assert is_due(0.25, 0.5, 8)  # of a run that has been extended
    written, last = [], -1.0
    for step in range(1, 65):
        if is_due(step / 64, last, 8):
            written.append(step)
            last = step / 64
    assert written == [1, 9, 17, 25, 33, 41, 49, 57]


@pytest.mark.parametrize("trained", [False, True])
def test_restarts_resume_in_the_first_folder_with_a_checkpoint(tmp_path, monkeypatch, trained):
    store = torch.distributed.HashStore()
    monkeypatch.setattr(restart_folder, "agent_store", lambda: store)

    def attempt():
        """The runs of a script with two runs of one name."""
        monkeypatch.setattr(restart_folder, "_RUN_COUNTER", itertools.count())
        return [restart_folder.RunFolder("run") for _ in range(2)]

    folders = [tmp_path / "run", tmp_path / "run-2"]
    for run, folder in zip(attempt(), folders, strict=True):
        assert run.find_existing() is None
        folder.mkdir()
        assert run.register(folder) == folder
    if trained:
        storage.write_checkpoint(folders[1], 3, {"w": torch.ones(2)}, {"step": 3})
    first, second = attempt()
    assert first.find_existing() is None
    assert second.find_existing() == (folders[1] if trained else None)
    assert [folder.exists() for folder in folders] == [False, trained]
    monkeypatch.setattr(restart_folder, "agent_store", lambda: None)  # not under torchrun
    (alone, _) = attempt()
    folders[0].mkdir()
    assert alone.register(folders[0]) == folders[0]
    assert alone.find_existing() is None


@pytest.mark.catches("older_state_goes_before_the_new_one_is_whole")
def test_checkpoint_failure_keeps_the_earlier_one(tmp_path, monkeypatch):
    first = storage.write_checkpoint(tmp_path, 3, {"w": torch.ones(2)}, {"step": 3})

    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "save_file", full)
    with pytest.raises(UserError, match=r"No space left on device; the earlier one, .*is complete"):
        storage.write_checkpoint(tmp_path, 4, {"w": torch.zeros(2)}, {"step": 4})
    assert storage.latest_checkpoint(tmp_path) == first
    weights = {"w": torch.empty(2)}
    storage.load_checkpoint_tensors(first, weights)
    assert weights["w"].tolist() == [1.0, 1.0]
    assert storage.read_checkpoint_metadata(first) == {"step": 3}


@pytest.mark.catches("resumed_run_has_other_numpy_numbers")
def test_rng_state_is_restored_from_json():
    def draw():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()

    saved = json.loads(json.dumps(get_rng_state()))
    expected = draw()
    assert draw() != expected
    set_rng_state(saved)
    assert draw() == expected


@pytest.mark.catches("settings_of_a_resumed_run_may_change")
def test_resume_config_rejects_changed_fixed_fields(tmp_path):
    config = TrainConfig(train_path="a.jsonl", seed=3, max_steps=5)
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config.to_dict()))
    assert resume_config(tmp_path, {"max_steps": 9, "seed": 3}).max_steps == 9
    with pytest.raises(UserError, match=r"resume: seed is 3 in .*, not 4; leave it out"):
        resume_config(tmp_path, {"max_steps": 9, "seed": 4})


@pytest.mark.catches("rows_of_steps_done_again_stay")
def test_resume_removes_rows_after_the_checkpoint(tmp_path):
    path, rows = tmp_path / "metrics.jsonl", [{"step": step} for step in range(5)]
    for row in rows:
        append_row(path, row)
    assert read_rows(path, 3, truncate=False) == rows[:3]
    assert read_rows(path, 9, truncate=True) == rows
    assert read_rows(path, 3, truncate=True) == rows[:3]
    assert read_rows(path, 9, truncate=True) == rows[:3]


@pytest.mark.catches("run_overwrites_the_one_before")
def test_run_folders_are_unique(tmp_path):
    folders = [create_run_folder(tmp_path / "a" / "runs", "name") for _ in range(3)]
    assert [folder.name for folder in folders] == ["name", "name-2", "name-3"]
    assert all(folder.is_dir() for folder in folders)


@pytest.mark.catches("digest_ignores_the_weights")
def test_weights_digest_covers_every_bit_and_name():
    weights = {"a": torch.arange(3.0), "b": torch.zeros(2)}
    one_bit = torch.tensor([0.0, 1.0, torch.tensor(2.0).nextafter(torch.tensor(3.0))])
    other_weights = [
        {**weights, "a": one_bit},
        {**weights, "b": -weights["b"]},
        {"a": weights["a"], "c": weights["b"]},
    ]
    digests = [weights_digest(tensors) for tensors in (weights, *other_weights)]
    assert len(set(digests)) == 4
    assert weights_digest(dict(reversed(weights.items()))) == digests[0]


@pytest.mark.catches("mistake_of_a_worker_is_lost")
def test_worker_returns_a_user_error(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path = tmp_path / "outcome.json"
    with pytest.raises(SystemExit), worker_context(str(path)):
        raise UserError("seq_len is too long")
    assert json.loads(path.read_text()) == {"error": "seq_len is too long"}


@pytest.mark.parametrize(("cores", "workers", "threads"), [(8, 2, 4), (8, None, 8), (2, 4, 1)])
def test_worker_threads_share_the_cores(tmp_path, monkeypatch, cores, workers, threads):
    set_to = []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if workers is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(workers))
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    with worker_context(str(tmp_path / "outcome.json")):
        pass
    assert set_to == [threads]


@pytest.mark.catches("card_needs_finite_figures")
@pytest.mark.parametrize("kind", ["encoder", "seq2seq"])
@pytest.mark.parametrize("tokenizer", ["bpe, 300 ids", None])
def test_model_card_describes_model_and_tokenizer(kind, tokenizer):
    changes = {"causal": False, "n_decoder_layers": 3} if kind == "seq2seq" else {}
    config = tiny_config(n_layers=2, **changes)
    text = model_card.render_model_card(
        config,
        {"val_loss": 1.23456, "step": 3.0, "val_odds": math.nan, "val_ratio": math.inf},
        name="verse", settings={"train_path": "a.txt"}, model_kind=kind,
        task=LanguageModeling(), tokenizer=tokenizer, plots=["lr.png"],
    )  # fmt: skip
    lines = text.splitlines()
    assert [line for line in lines if line.startswith("Tokenizer")] == (
        ["Tokenizer: bpe, 300 ids."] if tokenizer else []
    )
    model = tiny_model(
        model=Seq2SeqTransformer if kind == "seq2seq" else Transformer, **config.to_dict()
    )
    size = sum(parameter.numel() for parameter in model.parameters())
    what = "An encoder-decoder" if kind == "seq2seq" else "A causal"
    layers = "2 + 3" if kind == "seq2seq" else "2"
    assert any(
        line.startswith(
            f"{what} Transformer for language modeling, {size:,} parameters: {layers} layers x "
        )
        for line in lines
    )
    assert [line for line in lines if line.startswith("| ")][1:] == [
        "| validation loss | 1.235 |", "| step | 3 |",
        "| validation odds | nan |", "| validation ratio | inf |",
    ]  # fmt: skip
    assert "![lr](lr.png)" in lines


@pytest.mark.catches("samples_have_no_seed")
@pytest.mark.parametrize(("beams", "seed"), [(1, 0), (3, None)])
def test_sample_generation_repeats_with_its_seed(beams, seed):
    generation = GenerationConfig(max_new_tokens=100, temperature=0.0, num_beams=beams)
    writer = types.SimpleNamespace(
        artifacts=types.SimpleNamespace(generation_config=generation),
        run=types.SimpleNamespace(tokenizer=None, kind="seq2seq"),
    )
    config = SampleGeneration._generation_config(writer)
    assert (config.seed, config.num_beams, config.max_new_tokens) == (seed, beams, 64)


@pytest.mark.catches("limit_of_tokens_stays_for_other_batches")
def test_sample_generation_max_new_tokens_shrinks_with_the_batch():
    run = types.SimpleNamespace(
        config=types.SimpleNamespace(batch_tokens=4096), data=types.SimpleNamespace(batch_size=16)
    )
    assert [auto_tune._scaled_batch_tokens(run, size) for size in (16, 4, 1)] == [4096, 1024, 256]
    run.config.batch_tokens = None
    assert auto_tune._scaled_batch_tokens(run, 4) is None


@pytest.mark.catches("card_of_the_model_stays_unfinished")
def test_final_model_card_has_all_metrics_and_plots(tmp_path):
    run = types.SimpleNamespace(
        tokenizer=None, tokenizer_summary="bpe, 300 ids", kind="encoder", task=LanguageModeling(),
        model_config=tiny_config(), name="verse",
        changed_settings=lambda: {"seed": 3},
    )  # fmt: skip
    outputs = RunArtifacts(tmp_path, run)
    (tmp_path / "best").mkdir()
    outputs.loss_plot.write_bytes(b"a picture")
    outputs.finalize_model_card("best", {"val_loss": 1.5, "test_loss": 2.25, "step": 40.0})
    card = (tmp_path / "best" / "README.md").read_text(encoding="utf-8")
    for line in ("| validation loss | 1.5 |", "| test loss | 2.25 |", "| step | 40 |"):
        assert line in card
    assert "Tokenizer: bpe, 300 ids." in card
    assert (tmp_path / "best" / "loss.png").read_bytes() == b"a picture"


@pytest.mark.catches("warm_start_may_have_another_shape")
def test_pretraining_cannot_change_the_model_shape():
    overrides = pretraining._check_overrides({"model_config": {"dropout": 0.3}, "max_steps": 5})
    assert overrides == {"task_config": {}, "model_config": {"dropout": 0.3}, "max_steps": 5}
    with pytest.raises(UserError, match=r"pretrain: model_config may set .*, not d_model"):
        pretraining._check_overrides({"model_config": {"d_model": 32}})


@pytest.mark.catches("csv_of_a_resumed_run_overwrites_the_first")
def test_csv_logger_folder_is_new_for_each_resumption(tmp_path):
    for name in ("csv", "csv-2", "csv-3"):
        logger = csv(tmp_path)
        assert logger.log_dir == str(tmp_path / name)
        (tmp_path / name).mkdir()


@pytest.mark.catches("resumed_run_forgets_its_patience")
def test_resume_restores_early_stopping_patience():
    saved = []

    def validated(callback, losses):
        trainer = types.SimpleNamespace(global_step=0, should_stop=False)
        for loss in losses:
            trainer.global_step += 1
            trainer.callback_metrics = {"val_loss": loss}
            callback.on_validation_end(trainer, None)
        return trainer.should_stop

    before = BestModelCheckpoint(saved.append, patience=3)
    assert not validated(before, [2.0, 3.0, 3.0])
    after = BestModelCheckpoint(saved.append, patience=3)
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    assert validated(after, [2.5])
    assert [metrics["val_loss"] for metrics in saved] == [2.0]
