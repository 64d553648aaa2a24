"""The model card of a run."""

import math
import types

import pytest

from miniformer.model.seq2seq import Seq2SeqTransformer
from miniformer.model.transformer import Transformer
from miniformer.tasks.language_modeling import LanguageModeling
from miniformer.training.report import model_card
from miniformer.training.report.artifacts import RunArtifacts
from tests.kit import tiny_config, tiny_model


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
