"""Features of series, against NumPy in plain loops."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniformer import Transformer, TransformerConfig
from miniformer.model.wide_head.kernels import KernelFeatures
from miniformer.model.wide_head.series import NumberFeatures, StatisticFeatures


def a_batch(lengths, width=2, seed=0):
    """Series of these lengths, padded with other numbers, and the same without padding."""
    random = np.random.default_rng(seed)
    rows = [random.normal(size=(length, width)).astype(np.float32) for length in lengths]
    vectors = np.full((len(rows), max(lengths), width), 9.0, np.float32)
    mask = np.zeros(vectors.shape[:2], bool)
    for row, series in enumerate(rows):
        vectors[row, : len(series)], mask[row, : len(series)] = series, True
    return {"inputs": torch.tensor(vectors), "attention_mask": torch.tensor(mask)}, rows


@pytest.mark.catches("padding_is_a_number")
def test_numbers_are_those_of_the_vectors_in_order():
    inputs, rows = a_batch([3, 2])
    values = NumberFeatures(6).compute(inputs)
    assert values[0].tolist() == rows[0].ravel().tolist()
    assert values[1].tolist() == [*rows[1].ravel().tolist(), 0.0, 0.0]


@pytest.mark.catches("padding_is_a_number")
@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 99))
def test_statistics_equal_numpy(lengths, seed):
    inputs, rows = a_batch(lengths, seed=seed)
    actual = StatisticFeatures(21).compute(inputs).numpy()
    for row, series in enumerate(rows):
        n = len(series)
        rank = np.arange(n)
        slope = np.polyfit(rank, series, 1)[0] * (n - 1) if n > 1 else np.zeros(2)
        change = np.abs(np.diff(series, axis=0)).mean(0) if n > 1 else np.zeros(2)
        expected = np.concatenate([
            series.mean(0), series.std(0), series.min(0), series.max(0), series[0], series[-1],
            slope, change, series[3 * rank < n].mean(0), series[3 * (rank + 1) > 2 * n].mean(0),
            [np.log(n)],
        ])  # fmt: skip
        np.testing.assert_allclose(actual[row], expected, atol=1e-4)


@pytest.mark.catches("dilations_are_ignored", "padding_is_a_number")
def test_kernels_are_shares_of_positions_above_thresholds():
    inputs, rows = a_batch([40, 23], width=3)
    features = KernelFeatures(84 * 2 * 2, 3, 2)
    random = np.random.default_rng(1)
    channels = random.integers(0, 2, (2, 84, 3)).astype(np.float32)
    thresholds = random.normal(size=(2, 84, 2)).astype(np.float32)
    features.channels.copy_(torch.tensor(channels))
    features.thresholds.copy_(torch.tensor(thresholds))
    actual = features.compute(inputs).numpy()
    kernels = list(combinations(range(9), 3))
    for row, series in enumerate(rows):
        expected = []
        for level in range(2):
            step = 2**level
            padded = np.pad(series.astype(float), ((4 * step, 4 * step), (0, 0)))
            for quantile in range(2):
                for kernel, columns in enumerate(kernels):
                    weights = [2.0 if tap in columns else -1.0 for tap in range(9)]
                    signal = padded @ channels[level, kernel]
                    outputs = sum(weight * signal[tap * step : tap * step + len(series)]
                                  for tap, weight in enumerate(weights))  # fmt: skip
                    expected.append((outputs > thresholds[level, kernel, quantile]).mean())
        np.testing.assert_allclose(actual[row], expected, atol=1e-6)


@pytest.mark.catches("constant_features_are_scaled_up")
def test_standardized_features_have_squares_that_add_up_to_one():
    values = torch.randn(50, 6) * torch.arange(6) + 3  # the first is constant
    features = NumberFeatures(6)
    features.standardize(values)
    result = features({"inputs": values[:, None], "attention_mask": None})
    assert torch.equal(result[:, 0], torch.zeros(50))
    assert float(result.square().sum(1).mean()) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.catches("groups_share_their_first_weights")
def test_head_adds_up_the_outputs_of_its_groups(tmp_path):
    groups = [{"type": "numbers", "size": 20}, {"type": "statistics", "size": 21}]
    config = TransformerConfig(d_model=8, n_heads=2, n_layers=1, input_dim=2, output_dim=3,
                               wide_head=groups)  # fmt: skip
    model = Transformer(config).eval()
    head = model.wide_head
    head.weight.copy_(torch.randn(41, 3))
    head.mix.copy_(torch.tensor([0.5, 0.5]))
    inputs, _ = a_batch([10, 7])
    parts = [
        group(inputs) @ weight
        for group, weight in zip(head.groups, head.weight.split([20, 21]), strict=True)
    ]
    torch.testing.assert_close(head.linear(inputs), sum(parts) + head.bias)
    model.save_pretrained(tmp_path)
    loaded = Transformer.from_pretrained(tmp_path)
    assert torch.equal(loaded.classify(**inputs), model.classify(**inputs))
