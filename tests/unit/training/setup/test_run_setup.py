"""Prepared runs: the data settings of their model directories."""

import json

import pytest
from rich.console import Console

from miniformer.train_config import TrainConfig
from miniformer.training.setup.prepare import prepare


@pytest.mark.catches("model_directories_have_the_usual_batch_size")
def test_data_settings_are_those_that_the_run_reads_with(tmp_path):
    path = tmp_path / "data.jsonl"
    rows = [{"body": text, "label": text[0]} for text in ("ab", "ba", "aa", "bb")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = TrainConfig(
        train_path=str(path), task="classification", tokenizer="byte", input_field="body",
        batch_size=3, batch_tokens=20, seq_len=8,
        model_config={"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 16},
    )  # fmt: skip
    stored = prepare(config, Console(quiet=True)).data_settings
    assert (stored.seq_len, stored.batch_size, stored.batch_tokens) == (8, 3, 20)
    assert stored.mapping().input_field == "body"
