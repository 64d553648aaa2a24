"""Values of the RBF kernel at landmarks, compared with loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniformer.model.wide_head.ngrams import NgramFeatures, ngram_keys
from miniformer.model.wide_head.rbf import RbfFeatures
from miniformer.model.wide_head.series import NumberFeatures


def kernel(x, z, scale):
    return math.exp(-scale * sum((a - b) ** 2 for a, b in zip(x, z, strict=True)))


@pytest.mark.catches("landmarks_have_no_norm")
@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(1, 4), st.floats(0.01, 2.0), st.integers(0, 99))
def test_values_of_dense_features(rows, landmarks, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    features = RbfFeatures(landmarks, NumberFeatures(4))
    features.landmarks.copy_(torch.randn(4, landmarks, generator=generator))
    features.scale.fill_(scale)
    x = torch.randn(rows, 2, 2, generator=generator)
    values = features({"inputs": x, "attention_mask": None})
    for row, inner in enumerate(x.flatten(1).tolist()):
        for column in range(landmarks):
            expected = kernel(inner, features.landmarks[:, column].tolist(), scale)
            assert values[row, column].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.catches("repeated_columns_count_once")
def test_sparse_features_that_occur_several_times_add_up():
    """The inner features are numbers of tokens; token 1 occurs twice, token 3 is unknown."""
    inner = NgramFeatures(2, length=1, positions=False, counts=True)
    known = ngram_keys({"inputs": torch.tensor([[1, 2]])}, length=1, positions=False)[0]
    order = known.argsort()
    inner.keys.copy_(known[order])
    inner.idf.fill_(0.5)
    features = RbfFeatures(1, inner)
    features.landmarks.copy_(torch.tensor([[1.0], [0.5]])[order])
    features.scale.fill_(2.0)
    values = features({"inputs": torch.tensor([[1, 1, 2, 3], [2, 3, 3, 3]])})
    # Inner features [1, 0.5] and [0, 0.5], of which the first are the landmark's.
    torch.testing.assert_close(values, torch.tensor([[1.0], [math.exp(-2.0)]]))
