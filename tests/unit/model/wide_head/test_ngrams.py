"""Linear head over n-grams, against plain Python."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniformer import Seq2SeqTransformer, Transformer, TransformerConfig, UserError
from miniformer.checkpoint.pipeline import Pipeline
from miniformer.config import ConfigError
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.model.wide_head.ngrams import UNKNOWN, ngram_keys, second_text_keys
from miniformer.tasks.classification import Classification

FIELDS = {"vocab_size": 7, "d_model": 8, "n_heads": 2, "n_layers": 1, "output_dim": 3,
          "dropout": 0.0}  # fmt: skip


def plain_ngrams(ids, types, length, positions):
    """The n-grams that end at each position, and tokens with their position."""
    pairs = list(zip(ids, types, strict=True))
    ngrams = [tuple(pairs[end - n : end]) for n in range(1, length + 1)
             for end in range(n, len(pairs) + 1)]  # fmt: skip
    return ngrams + [("at", i, pair) for i, pair in enumerate(pairs)] * positions


rows = st.lists(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), min_size=1, max_size=8),
                min_size=1, max_size=5)  # fmt: skip


@pytest.mark.catches("ngrams_do_not_tell_lengths_apart", "padding_is_part_of_ngrams",
                     "ngrams_ignore_token_types")  # fmt: skip
@settings(max_examples=60, deadline=None)
@given(rows, st.integers(1, 4), st.booleans(), st.booleans())
def test_keys_are_equal_exactly_for_equal_ngrams(rows, length, positions, left):
    width = max(map(len, rows))
    ids, types = torch.zeros(2, len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, pairs in enumerate(rows):
        columns = slice(width - len(pairs), None) if left else slice(len(pairs))
        ids[row, columns], types[row, columns] = torch.tensor(pairs).T
        mask[row, columns] = True
    inputs = {"inputs": ids, "attention_mask": mask, "token_types": types}
    keys = ngram_keys(inputs, length=length, positions=positions)
    key_of = {}
    for row, pairs in enumerate(rows):
        expected = plain_ngrams(*zip(*pairs, strict=True), length, positions)
        actual = [int(key) for key in keys[row] if key != UNKNOWN]
        assert len(actual) == len(expected)
        for ngram, key in zip(expected, actual, strict=True):
            assert key_of.setdefault(ngram, key) == key
    assert len(set(key_of.values())) == len(key_of)


@pytest.mark.catches("second_texts_have_the_first_text", "second_texts_lack_marks")
@settings(max_examples=40, deadline=None)
@given(rows)
def test_keys_of_second_texts_are_tokens_with_and_without_their_type(rows):
    width = max(map(len, rows))
    ids, types = torch.zeros(2, len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for row, pairs in enumerate(rows):
        ids[row, : len(pairs)], types[row, : len(pairs)] = torch.tensor(pairs).T
        mask[row, : len(pairs)] = True
    keys = second_text_keys({"inputs": ids, "attention_mask": mask, "token_types": types})
    key_of = {}
    for row, pairs in enumerate(rows):
        second = [(token, kind) for token, kind in pairs if kind in (1, 3)]
        expected = [token for token, _ in second] + second
        actual = [int(key) for key in keys[row] if key != UNKNOWN]
        assert len(actual) == len(expected)
        for feature, key in zip(expected, actual, strict=True):
            assert key_of.setdefault(feature, key) == key
    assert len(set(key_of.values())) == len(key_of)


def filled(**fields):
    """A model whose head knows the n-grams of two texts, and the texts' n-grams."""
    texts = [[1, 2, 3, 1, 2], [4, 2, 3]]
    ngrams = sorted(
        {ngram for ids in texts for ngram in plain_ngrams(ids, [0] * len(ids), 2, False)}
    )
    keys = {}
    for ids in texts:
        hashes = ngram_keys({"inputs": torch.tensor([ids])}, length=2, positions=False)[0]
        hashes = [int(key) for key in hashes if key != UNKNOWN]
        keys |= dict(zip(plain_ngrams(ids, [0] * len(ids), 2, False), hashes, strict=True))
    torch.manual_seed(0)
    group = {"type": "ngrams", "size": len(ngrams), "length": 2}
    config = TransformerConfig(**FIELDS, wide_head=[group], **fields)
    model = Transformer(config).eval()
    order = sorted(range(len(ngrams)), key=lambda index: keys[ngrams[index]])
    head = model.wide_head
    head.groups[0].keys.copy_(torch.tensor([keys[ngrams[index]] for index in order]))
    head.groups[0].idf.copy_(torch.rand(len(ngrams)) + 0.5)
    head.weight.copy_(torch.randn(len(ngrams), 3))
    head.bias.copy_(torch.randn(3))
    head.mix.copy_(torch.tensor([0.25, 0.75]))
    return model, [ngrams[index] for index in order]


@pytest.mark.catches("wide_features_have_no_unit_norm", "unknown_ngrams_are_known",
                     "sparse_features_have_the_value_one")  # fmt: skip
def test_head_is_linear_in_the_normalized_frequencies():
    model, ngrams = filled()
    head = model.wide_head
    ids = [1, 2, 3, 6, 1, 2]
    values = {}
    for ngram in plain_ngrams(ids, [0] * 6, 2, False):
        if ngram in ngrams:
            values.setdefault(ngrams.index(ngram), []).append(
                float(head.groups[0].idf[ngrams.index(ngram)])
            )
    norm = math.sqrt(sum(value**2 for list_ in values.values() for value in list_))
    expected = head.bias.numpy().astype(float)
    for index, list_ in values.items():
        expected = expected + sum(list_) / norm * head.weight[index].numpy()
    np.testing.assert_allclose(head.linear({"inputs": torch.tensor([ids])})[0], expected, atol=1e-5)


def test_text_without_known_ngrams_gives_the_bias():
    model, _ = filled()
    head = model.wide_head
    assert torch.equal(head.linear({"inputs": torch.tensor([[6, 6]])})[0], head.bias)


@pytest.mark.catches("the_wide_head_is_added_in_training")
def test_outputs_are_the_weighted_sum_in_evaluation_only():
    model, _ = filled()
    ids = torch.tensor([[1, 2, 3, 0], [4, 2, 0, 0]])
    mask = torch.tensor([[True, True, True, False], [True, True, False, False]])
    deep = model.logits(model.embed(ids, mask))
    wide = model.wide_head.linear({"inputs": ids, "attention_mask": mask})
    torch.testing.assert_close(model.classify(ids, mask), 0.25 * deep + 0.75 * wide)
    torch.testing.assert_close(model.train().classify(ids, mask), deep)


def test_head_is_saved_with_the_model(tmp_path):
    model, _ = filled()
    model.save_pretrained(tmp_path)
    ids = torch.tensor([[1, 2, 3, 5]])
    assert torch.equal(Transformer.from_pretrained(tmp_path).classify(ids), model.classify(ids))


def test_head_has_no_parameters():
    with_head, without = filled()[0], Transformer(TransformerConfig(**FIELDS))
    assert len(list(with_head.parameters())) == len(list(without.parameters()))


GROUP = {"type": "ngrams", "size": 5}


@pytest.mark.catches("wide_head_settings_are_not_checked")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"output_dim": None}, r"wide_head=\[.*\] needs output_dim"),
        ({"input_dim": 4}, "wide_head: ngrams has no effect on vectors; leave it out"),
        ({"wide_head": []}, "wide_head must have a group of features, or be null"),
        ({"wide_head": [{"size": 5}]}, "wide_head must have types of ngrams.*, not None"),
        ({"wide_head": [{"type": "ngrams"}]}, "wide_head: ngrams needs size"),
        ({"wide_head": [{**GROUP, "width": 5}]}, "wide_head: unknown 'width'; ngrams has size, "),
        ({"wide_head": [{**GROUP, "length": 0}]}, "length must be an integer of at least 1, not 0"),
        ({"wide_head": [{**GROUP, "positions": 1}]}, "positions must be true or false, not 1"),
    ],
)
def test_config_refuses_a_head_without_use(fields, message):
    with pytest.raises(ConfigError, match=message):
        TransformerConfig(**{**FIELDS, "wide_head": [GROUP], **fields})


def test_seq2seq_refuses_a_head():
    with pytest.raises(ConfigError, match="wide_head is for a Transformer"):
        Seq2SeqTransformer(TransformerConfig(vocab_size=7, d_model=8, n_heads=2, output_dim=3,
                                             wide_head=[GROUP]))  # fmt: skip


def test_export_names_the_head_as_the_problem(tmp_path):
    from miniformer.interop.hf.export import to_hf

    model = filled()[0]
    tokenizer = Tokenizer.train("word", ["a b c d"])
    task = Classification(classes=[0, 1, 2], input_kind="text")
    Pipeline(model, tokenizer, task).save(tmp_path / "model")
    for source in (model, tmp_path / "model"):
        with pytest.raises(UserError, match=r"does not support .*wide_head"):
            to_hf(source, tmp_path / "out")
