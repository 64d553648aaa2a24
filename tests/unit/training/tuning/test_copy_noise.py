"""Choice of copy noise by the data."""

import io
import json

import pytest
from rich.console import Console

from miniformer import TrainConfig
from miniformer.training.setup.prepare import prepare
from tests.kit import VERSE

WORDS = sorted({word for word in VERSE.split() if word.isalpha() and len(word) > 3})
PAST = [{"source": f"V;PST {word}", "target": f"{word}ed"} for word in WORDS]


def prepared_task(folder, records, **settings):
    path = folder / "train.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    run = prepare(
        TrainConfig(train_path=str(path), task="seq2seq", **settings),
        Console(width=300, file=io.StringIO()),
    )
    lines = [str(x) for x in run.resolved if x.name == "task_config.copy_noise"]
    return run.task, lines


@pytest.mark.catches("copy_noise_is_never_chosen")
def test_inflections_have_copy_noise(tmp_path):
    task, lines = prepared_task(tmp_path, PAST)
    assert task.copy_noise == 0.5
    assert lines == [
        "task_config.copy_noise: 0.5 (100% of the targets copy half of their characters from the "
        "source)"
    ]


@pytest.mark.catches("copy_noise_is_always_chosen")
@pytest.mark.parametrize(
    ("records", "settings"),
    [
        (PAST, {"task_config": {"copy_noise": 0.0}}),
        (PAST, {"tokenizer": "bpe"}),
        ([{"source": f"V;PST {word}", "target": word[::-1]} for word in WORDS], {}),
        # Pronunciations: sources have a tokenizer of their own.
        ([{"source": word, "target": " ".join(word.upper())} for word in WORDS], {}),
    ],
    ids=["given", "subwords", "nothing copied", "separate tokenizers"],
)
def test_others_have_none(tmp_path, records, settings):
    task, lines = prepared_task(tmp_path, records, **settings)
    assert task.copy_noise == 0
    assert lines == []
