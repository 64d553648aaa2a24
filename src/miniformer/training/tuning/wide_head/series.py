"""Fit of the features of series: numbers, statistics and convolutions."""

from __future__ import annotations

from typing import Any

import torch

from miniformer.config import TransformerConfig
from miniformer.model.wide_head.head import make_features
from miniformer.model.wide_head.kernels import LENGTH, NUM_KERNELS, KernelFeatures
from miniformer.model.wide_head.series import NUM_STATISTICS, DenseFeatures
from miniformer.training.tuning.wide_head.data import WideData

_MAX_NUMBERS = 2000  # of an input
_MAX_DILATIONS = 6
_NUM_FEATURES = 1500  # of kernels, about
_MAX_PRODUCTS = 3e11  # of all convolutions
_NUM_SAMPLES = 8  # batches whose convolutions give the thresholds
_GOLDEN_RATIO = (5**0.5 - 1) / 2


def propose_series(config: TransformerConfig, data: WideData) -> list[dict[str, Any]]:
    """Groups of features for the series of the data.

    The numbers are features if all inputs have one length and few numbers. Convolutions need
    inputs that are longer than a kernel.
    """
    width, lengths = config.input_dim or 1, data.lengths
    groups: list[dict[str, Any]] = []
    length = int(lengths.max())
    if (lengths == length).all() and length * width <= _MAX_NUMBERS:
        groups.append({"type": "numbers", "size": length * width})
    if length > 1:
        groups.append({"type": "statistics", "size": NUM_STATISTICS * width + 1})
    typical = int(torch.from_numpy(lengths).double().quantile(0.5))
    if typical <= LENGTH:
        return groups
    dilations = min(_MAX_DILATIONS, ((typical - 1) // (LENGTH - 1)).bit_length())
    products = float(lengths.sum()) * width * NUM_KERNELS * LENGTH * dilations
    if products <= _MAX_PRODUCTS:
        quantiles = max(1, round(_NUM_FEATURES / (NUM_KERNELS * dilations)))
        size = NUM_KERNELS * dilations * quantiles
        groups.append({"type": "kernels", "size": size, "width": width, "dilations": dilations})
    return groups


def fit_dense(
    group: dict[str, Any], config: TransformerConfig, data: WideData
) -> DenseFeatures | None:
    """Features with the means and standard deviations of the training data; None: no length.

    Args:
        group: of series, with its size.
        config: of the model.
        data: the training data.
    """
    features: DenseFeatures = make_features(group)
    if isinstance(features, KernelFeatures):
        _fit_kernels(features, data)
    with torch.inference_mode():
        features.standardize(torch.cat([features.compute(inputs) for inputs in data.inputs()]))
    return features


def _fit_kernels(features: KernelFeatures, data: WideData) -> None:
    """Draws the features of the series that each kernel reads, and sets the thresholds."""
    generator = torch.Generator().manual_seed(0)
    dilations, kernels, width = features.channels.shape
    if width > 1:
        # Between one feature and all of them, small numbers being as likely as large ones.
        exponents = torch.rand(dilations, kernels, 1, generator=generator)
        counts = (width + 1) ** exponents
        ranks = torch.rand(dilations, kernels, width, generator=generator).argsort(-1).argsort(-1)
        features.channels.copy_((ranks < counts.floor()).float())
    samples = data.samples(_NUM_SAMPLES)
    levels = torch.arange(features.thresholds[0].numel()) + 1
    for level in range(dilations):
        outputs = []
        for inputs in samples:
            mask = inputs.get("attention_mask")
            values = features.convolve(inputs, level).transpose(1, 2)  # [B, T, 84]
            outputs.append(values[mask] if mask is not None else values.flatten(0, 1))
        numbers = torch.cat(outputs).sort(0).values  # [n, 84]
        # Quantiles that cover (0, 1) evenly over all kernels.
        quantiles = (levels * _GOLDEN_RATIO % 1.0).view(kernels, -1)
        rows = (quantiles * (len(numbers) - 1)).long()
        features.thresholds[level].copy_(numbers.gather(0, rows.T).T)
