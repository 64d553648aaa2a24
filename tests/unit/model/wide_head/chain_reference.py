"""Plain enumeration of the tag sequences of a linear-chain conditional random field."""

import itertools

import torch


def sequence_score(scores, tags, transitions, start):
    """Score of a sequence of tags, from scores [V, C]."""
    total = start[tags[0]] + sum(scores[word, tag] for word, tag in enumerate(tags))
    return total + sum(transitions[a, b] for a, b in itertools.pairwise(tags))


def all_sequences(scores, transitions, start):
    """Each sequence of tags with its probability."""
    options = list(itertools.product(range(scores.shape[1]), repeat=len(scores)))
    totals = torch.stack([sequence_score(scores, tags, transitions, start) for tags in options])
    return list(zip(map(list, options), totals.softmax(0), strict=True))
