"""Words and their tokens: alignment for all kinds of tokenizers, windows, collation."""

from itertools import pairwise

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.tagging.word_encoding import (
    collate_words,
    encode_tokens,
    encode_words,
    plan_windows,
    pooling_weights,
)

TEXTS = [" Anna lives in New-York , isn't it ?", " the liver of Anna , 1 2 3 ."] * 5
KINDS = ("bpe", "unigram", "wordpiece", "word", "char", "byte")
TOKENIZERS = {
    kind: Tokenizer.train(kind, TEXTS, {"bpe": 300, "unigram": 280, "wordpiece": 90}.get(kind))
    for kind in KINDS
}
WORDS = st.lists(st.text("Anaglivesth'-1,", min_size=1, max_size=7), min_size=1, max_size=9)


def sentencepiece_like(normalizer=None, pre_tokenizer=None):
    """A BPE tokenizer of whole words and characters with the mark of SentencePiece."""
    vocab = {token: i for i, token in enumerate(["<unk>", "</s>", "▁", *"abc", "▁a", "▁b"])}
    merges = [("▁", "a"), ("▁", "b")]
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>"))
    if normalizer is not None:
        backend.normalizer = normalizer
    if pre_tokenizer is not None:
        backend.pre_tokenizer = pre_tokenizer
    backend.decoder = decoders.Metaspace()
    return Tokenizer(backend)


SENTENCEPIECE = {
    "metaspace": sentencepiece_like(pre_tokenizer=pre_tokenizers.Metaspace()),
    "first": sentencepiece_like(pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="first")),
    "never": sentencepiece_like(pre_tokenizer=pre_tokenizers.Metaspace(prepend_scheme="never")),
    "llama": sentencepiece_like(
        normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    ),
}


@pytest.mark.catches("words_are_encoded_without_their_space")
@pytest.mark.parametrize("kind", KINDS)
@given(tokens=WORDS)
def test_words_have_the_tokens_of_a_text(kind, tokens):
    tokenizer = TOKENIZERS[kind]
    encoded = encode_words(tokens, tokenizer)
    ids = [token for word in tokens for token in encoded[word].ids]
    assert ids == tokenizer.encode(" " + " ".join(tokens))


@pytest.mark.parametrize("kind", SENTENCEPIECE)
def test_words_of_sentencepiece_have_one_mark(kind):
    tokenizer = SENTENCEPIECE[kind]
    encoded = encode_words(["a", "ba", "c"], tokenizer)
    name = tokenizer.backend.id_to_token
    tokens = {word: [name(token) for token in item.ids] for word, item in encoded.items()}
    assert tokens == {"a": ["▁a"], "ba": ["▁b", "a"], "c": ["▁", "c"]}


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
@given(tokens=WORDS)
def test_words_match_those_of_transformers(kind, tokens):
    """Ids and alignment of `is_split_into_words`; of byte-level BPE with a space before words."""
    backend = tokenizers.Tokenizer.from_str(TOKENIZERS[kind].backend.to_str())
    if kind == "bpe":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    theirs = PreTrainedTokenizerFast(tokenizer_object=backend)(
        tokens, is_split_into_words=True, add_special_tokens=False
    )
    (example,) = next(encode_tokens([tokens], TOKENIZERS[kind], 999))
    inner = slice(1, None)  # after the EOS token
    assert example["inputs"][inner].tolist() == theirs["input_ids"]
    # The space alone is a token of the word for transformers, and of no word here.
    ours = [number - 1 if number else None for number in example["word_ids"][inner].tolist()]
    expected = theirs.word_ids()
    assert all(a == b or a is None for a, b in zip(ours, expected, strict=True))
    assert [x for x in dict.fromkeys(ours) if x is not None] == list(range(len(tokens)))


def test_space_alone_belongs_to_no_word():
    for kind in ("char", "byte"):
        (example,) = next(encode_tokens([["An", "a"]], TOKENIZERS[kind], 99))
        assert example["word_ids"].tolist() == [0, 0, 1, 1, 0, 2]
    (example,) = next(encode_tokens([["Anna", "lives"]], TOKENIZERS["word"], 99))
    assert example["word_ids"].tolist() == [0, 1, 2]


@pytest.mark.catches("words_without_tokens_vanish")
def test_words_without_tokens_are_unknown():
    backend = tokenizers.Tokenizer.from_str(TOKENIZERS["wordpiece"].backend.to_str())
    backend.normalizer = normalizers.BertNormalizer()  # removes control characters
    tokenizer = Tokenizer(backend)
    (example,) = next(encode_tokens([["Anna", "\u200b\x00", "Anna"]], tokenizer, 99))
    _, counts = np.unique(example["word_ids"], return_counts=True)
    assert len(counts) == 4
    assert example["inputs"][example["word_ids"] == 2].tolist() == [tokenizer.unk_id]
    byte_level = encode_words([" ", "\n"], TOKENIZERS["byte"])
    assert all(len(item.ids) > item.num_space for item in byte_level.values())


@pytest.mark.catches("windows_predict_words_twice")
@given(lengths=st.lists(st.integers(1, 8), min_size=1, max_size=30), max_length=st.integers(8, 24))
def test_windows_predict_each_word_once_with_context(lengths, max_length):
    windows = plan_windows(lengths, max_length)
    predicted = [word for window in windows for word in range(window.first, window.last)]
    assert predicted == list(range(len(lengths)))
    for window in windows:
        assert window.start <= window.first < window.last <= window.end
        assert sum(lengths[window.start : window.end]) <= max_length
    if sum(lengths) <= max_length:
        assert len(windows) == 1
    for left, right in pairwise(windows):
        # A word of both is predicted where it is farther from the border.
        for word in range(right.start, left.end):
            in_left = word < left.last
            before, after = word - right.start, left.end - 1 - word
            assert after >= before - 1 if in_left else before >= after - 1
        overlap = sum(lengths[right.start : left.end])
        assert overlap <= max_length // 4 or right is windows[-1]


@pytest.mark.parametrize("kind", ["char", "bpe"])
def test_long_words_are_truncated_and_counted(kind):
    tokenizer = TOKENIZERS[kind]
    tokens = ["a" * 40, "Anna", "b" * 12]
    windows = next(encode_tokens([tokens], tokenizer, 9))
    assert all(len(window["inputs"]) <= 9 for window in windows)
    num_ids = {word: len(item.ids) for word, item in encode_words(tokens, tokenizer).items()}
    assert sum(w["cut"] for w in windows) == sum(max(0, count - 8) for count in num_ids.values())
    numbers = [
        (window["first_word"], len(set(window["word_ids"].tolist()) - {0}), window["words_after"])
        for window in windows
    ]
    assert numbers == [(0, 1, 2), (1, 1, 1), (2, 1, 0)]


def test_collated_words_have_their_tokens():
    rows = [["Anna", "is"], ["a", "b", "c"]]
    examples = [example for row in encode_tokens(rows, TOKENIZERS["char"], 99) for example in row]
    examples = [
        {**example, "labels": np.arange(2 + number)} for number, example in enumerate(examples)
    ]
    batch = collate_words(examples)
    assert batch["inputs"].shape == (2, 9)
    assert batch["word_starts"].tolist() == [[2, 7, 0], [2, 4, 6]]
    assert batch["word_lengths"].tolist() == [[4, 2, 0], [1, 1, 1]]
    assert batch["labels"].tolist() == [[0, 1, -100], [0, 1, 2]]
    assert batch["attention_mask"].sum(1).tolist() == [9, 7]
    assert batch["records"].tolist() == [0, 1]
    assert batch["words_after"].tolist() == batch["first_word"].tolist() == [0, 0]


@pytest.mark.catches("word_vectors_include_the_next_token")
@pytest.mark.parametrize("pooling", ["first", "last", "mean"])
def test_pooling_weights_give_the_vectors_of_words(pooling):
    features = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0))
    starts, lengths = torch.tensor([[2, 7, 0], [2, 4, 6]]), torch.tensor([[4, 2, 0], [1, 1, 3]])
    vectors = pooling_weights(starts, lengths, 9, pooling) @ features
    reduce = {"first": lambda x: x[0], "last": lambda x: x[-1], "mean": lambda x: x.mean(0)}
    for row in range(2):
        for word in range(3):
            begin, length = int(starts[row, word]), int(lengths[row, word])
            tokens = features[row, begin : begin + length]
            expected = reduce[pooling](tokens) if length else torch.zeros(5)
            torch.testing.assert_close(vectors[row, word], expected)
