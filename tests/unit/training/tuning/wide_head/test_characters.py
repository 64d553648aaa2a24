"""Wide heads of character n-grams: texts of tokens, choice, and fit."""

import io
import random

import numpy as np
import pytest
import tokenizers
from rich.console import Console
from sklearn.feature_extraction.text import CountVectorizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from miniformer import MiniFormerDataModule, TrainConfig, TransformerConfig
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.classification import Classification
from miniformer.training.tuning.wide_head.characters import fit_characters, token_texts
from miniformer.training.tuning.wide_head.data import WideData
from miniformer.training.tuning.wide_head.fit import fit_wide_head
from miniformer.training.tuning.wide_head.matrix import compute_block
from tests.kit import VERSE

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.mark.catches("tokens_lose_their_spaces")
@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece", "word"])
def test_token_texts_join_to_the_text(kind):
    tokenizer = Tokenizer.train(kind, [VERSE], 300)
    texts = token_texts(tokenizer)
    text = " ".join(VERSE.split()[:20])
    if kind in ("wordpiece", "word"):
        text = " ".join(word for word in text.split() if word.isalpha())
    joined = "".join(texts[token] for token in tokenizer.encode(text))
    assert joined.strip() == text
    assert texts[tokenizer.eos_id] == " "


def metaspace_tokenizer(byte_fallback):
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    if byte_fallback:  # as in Llama
        backend.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        )
    trainer = trainers.UnigramTrainer(vocab_size=150, unk_token="<unk>", special_tokens=["<unk>"])
    backend.train_from_iterator([VERSE], trainer)
    return backend


def suffix_tokenizer():
    backend = tokenizers.Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Whitespace(), decoders.BPEDecoder()
    trainer = trainers.BpeTrainer(
        vocab_size=150, end_of_word_suffix="</w>", special_tokens=["<unk>"]
    )
    backend.train_from_iterator([VERSE], trainer)
    return backend


@pytest.mark.parametrize(
    "backend",
    [metaspace_tokenizer(False), metaspace_tokenizer(True), suffix_tokenizer()],
    ids=["metaspace", "byte fallback", "suffix"],
)
def test_token_texts_of_other_tokenizers_join_to_the_text(backend):
    tokenizer = Tokenizer(backend)
    texts = token_texts(tokenizer)
    text = " ".join(word for word in VERSE.split()[:20] if word.isalpha())
    joined = "".join(texts[token] for token in tokenizer.encode(text))
    assert joined.strip() == text


def suffix_data(count=240):
    """Made-up words, whose class is their suffix."""
    choose = random.Random(0)
    records = []
    for number in range(count):
        suffix = ("ing", "ed")[number % 2]
        text = " ".join("".join(choose.choices(LETTERS, k=5)) + suffix for _ in range(3))
        records.append({"input": text, "label": number % 2})
    tokenizer = Tokenizer.train("bpe", [record["input"] for record in records], 350)
    data = MiniFormerDataModule(
        records, val_path=records[:10], tokenizer=tokenizer, task=Classification(), seq_len=32
    )
    data.setup()
    shape = {"d_model": 8, "n_heads": 2, "n_layers": 1, "vocab_size": tokenizer.vocab_size}
    return records, data, TransformerConfig(**shape, output_dim=2)


@pytest.mark.catches("characters_are_left_out")
def test_characters_join_the_ngrams_of_tokens():
    _, data, config = suffix_data()
    console = Console(file=io.StringIO(), width=300)
    fitted = fit_wide_head(TrainConfig(train_path="x"), config, data, console)
    assert [group["type"] for group in fitted.groups] == ["ngrams", "characters"]
    assert float(console.file.getvalue().split("accuracy ")[1].split(",")[0]) > 0.95


def test_fit_characters_equals_inverse_document_frequencies():
    _, data, config = suffix_data(40)
    texts = token_texts(data.tokenizer)
    wide_data = WideData(config, data)
    group = {"type": "characters", "length": 3, "vocab": config.vocab_size, "width": 12}
    features = fit_characters(group, config, wide_data)
    block = compute_block(features, wide_data.inputs()).to_dense().numpy()
    documents = []
    for inputs in wide_data.inputs():
        ids, mask = inputs["inputs"], inputs.get("attention_mask")
        mask = ids >= 0 if mask is None else mask
        documents += ["".join(texts[token] for token in row[real].tolist())
                      for row, real in zip(ids, mask, strict=True)]  # fmt: skip

    def analyze(text):
        sequences = [text[i : i + n] for n in (1, 2, 3) for i in range(len(text) - n + 1)]
        return [ngram for ngram in sequences if " " not in ngram[1:-1]]

    counts = CountVectorizer(analyzer=analyze, min_df=2).fit_transform(documents).toarray()
    idf = np.log((1 + len(documents)) / (1 + (counts > 0).sum(0))) + 1
    # Each occurrence is a feature of its own in the norm.
    reference = counts * idf / np.sqrt((counts * idf**2).sum(1, keepdims=True))
    assert block.shape == reference.shape
    np.testing.assert_allclose(np.sort(block, 1), np.sort(reference, 1), atol=1e-5)
    np.testing.assert_allclose(block @ block.T, reference @ reference.T, atol=1e-4)
