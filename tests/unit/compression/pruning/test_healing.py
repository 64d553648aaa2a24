"""Healing of pruned models."""

import copy
import json
import re

import pytest
import torch

import miniformer
from miniformer import Pipeline, UserError, cli
from miniformer.model.matrices import weight_matrices
from miniformer.tasks.embedding import EmbeddingTask
from miniformer.tasks.language_modeling import LanguageModeling
from miniformer.training.callbacks import progress
from tests.kit import tiny_model
from tests.unit.compression.conftest import TOKENIZER, texts

RECORDS = [{"text": text} for text in texts(200, seed=7)]
VAL = [{"text": text} for text in texts(40, seed=8)]


def zeros_of(model):
    return {x.name: x.weight.detach() == 0 for x in weight_matrices(model) if x.layer is not None}


@pytest.mark.catches("healing_changes_the_zeros", "healed_weights_are_not_written")
def test_a_sparse_model_heals_with_the_same_zeros(trained, tmp_path):
    options = {"sparsity": "2:4", "method": "magnitude", "data": VAL}
    plain = miniformer.prune(trained, tmp_path / "plain", **options)
    healed = miniformer.prune(trained, tmp_path / "healed", heal=RECORDS, steps=50, **options)
    models = [miniformer.load(tmp_path / name).model for name in ("plain", "healed")]
    zeros = [zeros_of(model) for model in models]
    assert all(torch.equal(x, zeros[1][name]) for name, x in zeros[0].items())
    assert healed.zeros == plain.zeros
    assert healed.unhealed_loss == pytest.approx(plain.losses[1], rel=1e-5)
    assert healed.losses[1] < 0.95 * healed.unhealed_loss
    assert not models[1].transforms


@pytest.mark.catches("healing_shows_no_progress")
def test_the_command_heals_a_narrow_model(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "_LINE_INTERVAL_SECONDS", 0.0)
    trained.save(tmp_path / "model")
    for name, records in (("train", RECORDS), ("val", VAL)):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    flags = ["prune", str(tmp_path / "model"), str(tmp_path / "out"), "--remove", "ffn=0.5"]
    flags += ["--data", str(tmp_path / "val.jsonl"), "--heal", str(tmp_path / "train.jsonl")]
    assert cli.main([*flags, "--steps", "20", "--no-compare"]) == 0
    text = capsys.readouterr().out
    out = miniformer.load(tmp_path / "out")
    loss = out.evaluate(VAL, num_resamples=0).metrics["loss"]
    assert f" pruned, {loss:.5f} healed (" in text
    assert re.search(r"^ *50%  epoch .*  step 10/20  loss \d", text, re.MULTILINE)
    assert out.model.config.ff_width == 32


@pytest.mark.catches("healing_advises_settings_of_train")
def test_a_loss_that_is_not_finite_names_what_prune_can_do(trained, tmp_path):
    model = copy.deepcopy(trained.model)
    with torch.no_grad():
        model.layers[1].feed_forward.down_proj.weight.mul_(1e38)
    pipeline = Pipeline(model, TOKENIZER, LanguageModeling())
    for prunes, zeros in (({"remove": "ffn=0.5"}, ""), ({"sparsity": 0.5}, " --callbacks ")):
        with pytest.raises(UserError) as caught:
            miniformer.prune(pipeline, tmp_path / "out", heal=RECORDS, steps=2, **prunes)
        problem, _, fix = str(caught.value).partition("; ")
        assert re.fullmatch("heal: the training loss is (nan|inf) at step [01]", problem)
        assert fix.startswith("prune less, or leave heal out and train the pruned directory with ")
        command = fix.partition("miniformer train FILE --init_from OUT --lr 1e-5")
        assert command[2].startswith(zeros)
        assert bool(command[2]) == bool(zeros)
    assert not list(tmp_path.iterdir())


def test_models_without_labels_or_task(trained, tmp_path):
    model = tiny_model(causal=False, vocab_size=TOKENIZER.vocab_size)
    pipeline = Pipeline(model, TOKENIZER, EmbeddingTask())
    with pytest.raises(UserError, match="a model for embedding has no labels; leave heal out"):
        miniformer.prune(pipeline, tmp_path / "out", sparsity=0.5, heal=[{"input": "a"}])
    with pytest.raises(UserError, match="heal needs a model with its task"):
        miniformer.prune(model, tmp_path / "out", sparsity=0.5, heal=[{"input": "a"}])
    with pytest.raises(UserError, match="'text'"):
        miniformer.prune(trained, tmp_path / "out", sparsity=0.5, heal=[{"input": "a"}])
    assert not list(tmp_path.iterdir())
