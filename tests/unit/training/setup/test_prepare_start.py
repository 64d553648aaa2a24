"""Runs from a loaded model: settings of the data are those of any other run."""

import pytest
from rich.console import Console

from miniformer import Pipeline
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.language_modeling import LanguageModeling
from miniformer.train_config import TrainConfig
from miniformer.training.setup.prepare_start import prepare_start
from tests.kit import plugins, tiny_model, write_jsonl


@pytest.mark.catches("start_ignores_the_order_of_batches")
def test_order_of_batches_and_weights_of_sources_are_in_effect(tmp_path):
    for name in ("a", "b"):
        write_jsonl(tmp_path / f"{name}.jsonl", [f"text {n} of {name}" for n in range(12)])
    start = Pipeline(tiny_model(vocab_size=258), Tokenizer.train("byte", []), LanguageModeling())
    order = {"type": "short_first", "batches": 3}
    sources = [{"path": str(tmp_path / f"{x}.jsonl"), "weight": w} for x, w in (("a", 3), ("b", 1))]
    with plugins.registered():
        config = TrainConfig(train_path=sources, batch_order=order, seq_len=16, batch_size=2)
        run = prepare_start(config, Console(quiet=True), start, {})
    assert isinstance(run.data.order, plugins.ShortFirst)
    assert run.data.order.batches == 3
    assert run.data.train_path.mixture.weights == [3.0, 1.0]
    assert "epoch" in {setting.name for setting in run.resolved}
