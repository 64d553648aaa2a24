"""Summary of a pipeline in a notebook."""

import re

import pytest

from miniformer import Pipeline, load
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.classification import Classification
from miniformer.training.report.model_card import render_model_card
from tests.kit import tiny_model

CLASSES = [f"<{n}>" for n in range(12)]
METRICS = {"val_accuracy": 0.75, "test_loss": 0.5, "step": 40, "training_tokens": 1000}


def rows(html):
    return dict(re.findall("<tr><th>(.*?)</th><td>(.*?)</td></tr>", html))


@pytest.mark.catches("summary_is_not_escaped", "card_metrics_are_not_read")
def test_pipeline_shows_a_table_in_a_notebook(tmp_path):
    task = Classification(classes=CLASSES, input_kind="text")
    model = tiny_model(vocab_size=258, output_dim=12, causal=False)
    pipeline = Pipeline(model, Tokenizer.train("byte", []), task)
    shown = rows(pipeline._repr_html_())
    size = sum(parameter.numel() for parameter in model.parameters())
    config = model.config
    names = ", ".join(f"&lt;{n}&gt;" for n in range(10))
    assert shown == {
        "task": "classification",
        "model": f"Transformer: {size:,} parameters, {config.n_layers} layers x {config.d_model}, "
        f"context {config.max_seq_len}",
        "tokenizer": "258 ids",
        "classes": f"12: {names} and 2 more",
    }
    pipeline.save(tmp_path / "model")
    card = render_model_card(
        config, METRICS, name="run", settings={}, model_kind="encoder", task=task, tokenizer=None
    )
    (tmp_path / "model" / "README.md").write_text(card)
    loaded = rows(load(tmp_path / "model")._repr_html_())
    assert loaded == {
        **shown, "directory": str(tmp_path / "model"),
        "validation accuracy": "0.75", "test loss": "0.5",
    }  # fmt: skip
