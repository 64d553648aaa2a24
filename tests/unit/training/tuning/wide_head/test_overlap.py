"""Wide heads of pairs of texts: choice of the overlap, and its fit."""

import io
import math
import random

import pytest
from rich.console import Console

from miniformer import MiniFormerDataModule, TrainConfig, TransformerConfig
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.model.wide_head.overlap import NUM_OVERLAPS
from miniformer.tasks.classification import Classification
from miniformer.tasks.regression import Regression
from miniformer.training.tuning.wide_head.data import WideData
from miniformer.training.tuning.wide_head.fit import fit_wide_head, propose
from miniformer.training.tuning.wide_head.overlap import fit_overlap

WORDS = [f"w{index}" for index in range(40)]


def similarity_data(count=150):
    """Pairs with the share of the first text's words that the second has."""
    choose = random.Random(0)
    records = []
    for _ in range(count):
        first = choose.sample(WORDS, 6)
        num_shared = choose.randint(0, 6)
        second = first[:num_shared] + choose.sample(
            [w for w in WORDS if w not in first], 6 - num_shared
        )
        choose.shuffle(second)
        records.append({"input": [" ".join(first), " ".join(second)], "value": num_shared / 6})
    tokenizer = Tokenizer.train("word", [text for record in records for text in record["input"]])
    data = MiniFormerDataModule(
        records, val_path=records[:10], tokenizer=tokenizer, task=Regression(), seq_len=32
    )
    data.setup()
    fields = data.task.model_config({}, tokenizer)
    shape = {"d_model": 8, "n_heads": 2, "n_layers": 1, "vocab_size": tokenizer.vocab_size}
    return records, data, TransformerConfig(**{**fields, **shape})


@pytest.mark.catches("overlap_is_left_out")
def test_overlap_predicts_the_similarity_of_texts():
    _, data, config = similarity_data()
    console = Console(file=io.StringIO(), width=300)
    fitted = fit_wide_head(TrainConfig(train_path="x"), config, data, console)
    assert "overlap" in str(fitted.groups[0])
    pearson = console.file.getvalue().split("pearson ")[1].split(",")[0]
    assert float(pearson) > 0.98


@pytest.mark.catches("overlap_weights_all_tokens_alike")
def test_fit_overlap_has_inverse_document_frequencies():
    records, data, config = similarity_data(30)
    group = {"type": "overlap", "size": NUM_OVERLAPS, "vocab": config.vocab_size}
    features = fit_overlap(group, config, WideData(config, data))
    for word in WORDS[:5]:
        (token,) = data.tokenizer.encode(word)
        count = sum(word in " ".join(record["input"]).split() for record in records)
        assert features.idf[token] == pytest.approx(math.log(31 / (1 + count)))
    assert features.idf[data.tokenizer.eos_id] == 0  # a separator of all pairs


def test_single_texts_have_no_overlap():
    _, data, config = similarity_data(30)
    config = TransformerConfig(**{**config.to_dict(), "token_types": None})
    types = [group["type"] for group in propose(config, WideData(config, data))]
    assert "ngrams" in types
    assert "overlap" not in types


@pytest.mark.catches("second_texts_are_left_out")
def test_words_that_only_the_second_text_has_are_features():
    """The label is 1 if the second text has a word of some that the first one lacks."""
    choose = random.Random(0)
    records = []
    for _ in range(600):
        first = choose.sample(WORDS, 8)
        second = choose.sample(WORDS, 5)
        label = int(any(word in WORDS[:6] and word not in first for word in second))
        records.append({"input": [" ".join(first), " ".join(second)], "label": label})
    tokenizer = Tokenizer.train("word", [text for record in records for text in record["input"]])
    data = MiniFormerDataModule(
        records, val_path=records[:10], tokenizer=tokenizer, task=Classification(), seq_len=32
    )
    data.setup()
    fields = data.task.model_config({}, tokenizer)
    shape = {"d_model": 8, "n_heads": 2, "n_layers": 1, "vocab_size": tokenizer.vocab_size}
    console = Console(file=io.StringIO(), width=300)
    config = TransformerConfig(**{**fields, **shape})
    fitted = fit_wide_head(TrainConfig(train_path="x"), config, data, console)
    assert fitted.groups[0] == {"type": "second_text", "size": fitted.groups[0]["size"]}
    accuracy = console.file.getvalue().split("accuracy ")[1].split(",")[0]
    assert float(accuracy) > 0.9
