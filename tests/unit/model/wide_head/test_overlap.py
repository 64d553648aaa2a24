"""Features of the overlap of two texts, against plain Python."""

import math
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniformer.model.wide_head.overlap import NUM_OVERLAPS, OverlapFeatures

BOUNDARY, VOCAB = 0, 6


def a_batch(pairs, marked):
    """Boundary, first text, boundary, second text; with `marked`, shared tokens have types 2, 3."""
    rows, types = [], []
    for first, second in pairs:
        both = set(first) & set(second) if marked else set()
        rows.append([BOUNDARY, *first, BOUNDARY, *second])
        kinds = [0] * (len(first) + 1) + [1] * (len(second) + 1)
        types.append([kind + 2 * (token in both) for kind, token in zip(kinds, rows[-1],
                      strict=True)])  # fmt: skip
    length = max(map(len, rows))
    mask = [[True] * len(row) + [False] * (length - len(row)) for row in rows]

    def pad(lists):
        return torch.tensor([[*row, *[1] * (length - len(row))] for row in lists])

    return {"inputs": pad(rows), "token_types": pad(types), "attention_mask": torch.tensor(mask)}


def expected(first, second, idf):
    """The features of a pair in plain Python."""

    def ngrams(text, n):
        return [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]

    sizes = [max(1, len(first)), max(1, len(second))]
    logs = [math.log(size) for size in sizes]
    values, longest = [*logs, logs[0] - logs[1], abs(logs[0] - logs[1])], 0
    for n in range(1, 5):
        one, two = ngrams(first, n), ngrams(second, n)
        ratios = [sum(gram in two for gram in one) / max(1, sizes[0] - n + 1),
                  sum(gram in one for gram in two) / max(1, sizes[1] - n + 1)]  # fmt: skip
        longest = n if set(one) & set(two) else longest
        values += [*ratios, ratios[0] * ratios[1]]
    for text, counterpart in ((first, second), (second, first)):
        missing = [idf[token] for token in text if token not in counterpart]
        total = sum(idf[token] for token in text)
        values += [(total - sum(missing)) / max(total, 1e-6), math.log1p(sum(missing)),
                   max(missing, default=0.0)]  # fmt: skip
    equal = [(i, j) for i in range(len(first)) for j in range(len(second))
             if first[i] == second[j]]  # fmt: skip
    norms = [max(sum(idf[token] ** 2 for token in text), 1e-6) for text in (first, second)]
    values.append(sum(idf[first[i]] ** 2 for i, _ in equal) / math.sqrt(norms[0] * norms[1]))
    ends = [(text[0], text[-1]) if text else (-1, -1) for text in (first, second)]
    values += [float(ends[0][0] == ends[1][0]), float(ends[0][1] == ends[1][1])]
    values += [longest / size for size in sizes]
    positions = [(i / sizes[0], j / sizes[1]) for i, j in equal]
    squares = [(a - b) ** 2 for a, b in positions]
    values.append(math.sqrt(statistics.mean(squares)) if positions else 0.0)
    columns = np.array(positions).T
    has_order = len(positions) > 1 and min(np.std(columns[0]), np.std(columns[1])) > 1e-3
    values.append(np.corrcoef(*columns)[0, 1] if has_order else 0.0)
    return values


@pytest.mark.catches("overlap_counts_separators", "overlap_ignores_the_order")
@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(*[st.lists(st.integers(1, VOCAB - 1), max_size=7)] * 2), min_size=1, max_size=3
    ),
    st.booleans(),
)
def test_overlap_equals_plain_python(pairs, marked):
    idf = [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    features = OverlapFeatures(NUM_OVERLAPS, VOCAB)
    features.idf.copy_(torch.tensor(idf))
    actual = features.compute(a_batch(pairs, marked))
    assert actual.shape == (len(pairs), NUM_OVERLAPS)
    rows = [expected(first, second, idf) for first, second in pairs]
    np.testing.assert_allclose(actual.numpy(), rows, atol=2e-3)
