"""Viterbi decoding against all sequences."""

from itertools import pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniformer.tasks.tagging.schemes import SCHEMES, is_valid_transition, parse_tag
from miniformer.tasks.tagging.viterbi import TagConstraint, decode

TAGS = {
    "iob2": ["O", "B-x", "I-x", "B-y", "I-y"],
    "iob1": ["I-x", "B-x", "O", "I-y"],
    "iobes": ["O", "B-x", "I-x", "E-x", "S-x"],
    "bilou": ["U", "B", "I", "O", "L"],
}


def best_sequence(logprobs, tags, scheme, *, is_start, is_end):
    """The best valid sequence of all, by their sums."""
    parsed = [parse_tag(tag) for tag in tags]

    def is_valid(path):
        return (
            all(is_valid_transition(scheme, parsed[a], parsed[b]) for a, b in pairwise(path))
            and (not is_start or is_valid_transition(scheme, None, parsed[path[0]]))
            and (not is_end or is_valid_transition(scheme, parsed[path[-1]], None))
        )

    paths = filter(is_valid, product(range(len(tags)), repeat=len(logprobs)))
    return max(paths, key=lambda path: float(logprobs[range(len(path)), path].sum()))


@pytest.mark.catches("viterbi_ignores_the_end")
@pytest.mark.catches("viterbi_is_greedy")
@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**16),
    rows=st.lists(
        st.tuples(st.integers(1, 4), st.booleans(), st.booleans()), min_size=1, max_size=3
    ),
)
def test_decoded_tags_are_the_best_valid_ones(scheme, seed, rows):
    lengths, starts, ends = (torch.tensor(column) for column in zip(*rows, strict=True))
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(rows), 4, len(TAGS[scheme]), generator=generator) * 3
    logprobs = logits[:, : int(lengths.max())].log_softmax(-1)
    constraint = TagConstraint(TAGS[scheme], scheme)
    decoded = decode(logprobs, lengths, constraint, is_start=starts, is_end=ends)
    for row, (length, is_start, is_end) in enumerate(rows):
        expected = best_sequence(
            logprobs[row, :length], TAGS[scheme], scheme, is_start=is_start, is_end=is_end
        )
        assert tuple(decoded[row, :length].tolist()) == expected


def test_decoding_by_default_is_of_whole_sequences():
    logprobs = torch.tensor([[[0.0, -1.0, 9.0], [0.0, 9.0, 0.0]]])  # I-x, then B-x
    constraint = TagConstraint(["O", "B-x", "I-x"], "iob2")
    assert decode(logprobs, torch.tensor([2]), constraint).tolist() == [[0, 1]]
    later = decode(logprobs, torch.tensor([2]), constraint, is_start=torch.tensor([False]))
    assert later.tolist() == [[2, 1]]


def test_decoding_without_a_valid_sequence_gives_one():
    constraint = TagConstraint(["I-x", "I-y"], "iob2")
    decoded = decode(torch.tensor([[[-2.0, -1.0]]]), torch.tensor([1]), constraint)
    assert decoded.tolist() == [[1]]
