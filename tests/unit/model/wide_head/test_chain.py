"""Marginals of a chain of tags against exhaustive enumeration; features of words in context."""

import itertools

import pytest
import torch

from miniformer.config import TransformerConfig
from miniformer.model.wide_head.chain import ChainHead, log_marginals
from miniformer.model.wide_head.ngrams import UNKNOWN
from miniformer.model.wide_head.word_context import word_feature_keys
from miniformer.tasks.tagging.word_features import hash_words
from tests.unit.model.wide_head.chain_reference import all_sequences


@pytest.mark.catches("last_word_has_a_following_one")
def test_log_marginals_equal_sums_over_all_sequences():
    generator = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(3, 5, 3, generator=generator)
    transitions = 2 * torch.randn(3, 3, generator=generator)
    start = torch.randn(3, generator=generator)
    mask = torch.arange(5) < torch.tensor([[5], [1], [3]])

    marginals = log_marginals(scores, mask, transitions, start).exp()

    for row, length in enumerate(mask.sum(1)):
        expected = torch.zeros(int(length), 3)
        for tags, probability in all_sequences(scores[row, :length], transitions, start):
            expected[range(int(length)), tags] += probability
        torch.testing.assert_close(marginals[row, :length], expected, atol=1e-5, rtol=1e-4)


def test_chain_head_predicts_the_words_after_the_context():
    config = TransformerConfig(
        vocab_size=10, output_dim=2, wide_head=[{"type": "words", "size": 40}]
    )
    head = ChainHead(config)
    table = hash_words(["a", "bc", "d"])
    hashes = torch.stack([torch.from_numpy(table[x].astype("int64")) for x in ("a", "bc", "d")])
    keys = word_feature_keys(hashes[None]).unique()
    head.groups[0].keys.copy_(keys[keys != UNKNOWN][:40])
    head.weight.copy_(torch.randn(40, 2, generator=torch.Generator().manual_seed(0)))
    inputs = {"word_hashes": hashes[None], "context_before": torch.tensor([1])}

    result = head.predicted(head.linear(inputs), {**inputs, "word_lengths": torch.tensor([[1, 1]])})

    torch.testing.assert_close(result, head.linear(inputs)[:, 1:])


def _keys(*rows):
    """Keys of rows of words, [B, V, L]."""
    table = hash_words(word for row in rows for word in row)
    hashes = [[torch.from_numpy(table[word].astype("int64")) for word in row] for row in rows]
    padded = torch.nn.utils.rnn.pad_sequence([torch.stack(row) for row in hashes], True)
    return word_feature_keys(padded)


def test_features_depend_on_two_words_to_each_side():
    keys = _keys(["x", "a", "b", "c", "d", "e", "y"], ["a", "b", "c", "d", "e"])
    torch.testing.assert_close(keys[0, 3], keys[1, 2])
    assert (keys[1, 5:] == UNKNOWN).all()


@pytest.mark.catches("neighbors_have_no_side")
def test_features_of_different_neighbors_differ():
    own = hash_words(["b"])["b"].shape[0]
    contexts = [["a", "b", "c"], ["c", "b", "a"], ["b", "b", "c"], ["a", "b", "b"]]
    rows = [_keys(row)[0, 1, own:] for row in contexts]
    for first, second in itertools.combinations(rows, 2):
        assert (first != second).any()
    # The border on the left is not that on the right.
    assert not torch.equal(_keys(["b", "a"])[0, 0, own:], _keys(["a", "b"])[0, 1, own:])
    assert (_keys(["a", "b", "c"])[0] >= 0).any()
