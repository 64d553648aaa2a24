"""Defaults from the dataset size: batch size, vocabulary size, model size."""

from __future__ import annotations

import dataclasses
import math

from miniformer.config.size_presets import SHAPE_FIELDS, SIZE_PRESETS, size_for_tokens
from miniformer.data.datamodule import MiniFormerDataModule
from miniformer.train_config import TrainConfig

DEFAULT_BATCH_SIZE = 16  # windows or examples
# A batch has a thousandth of the tokens of the dataset, within these limits, if the loss is per
# token. Small datasets need small batches, which on a CPU cost little more: see ADR 0019.
_MIN_BATCH_TOKENS, _MAX_BATCH_TOKENS = 2_048, 16_384
_MAX_BATCH_SIZE = 256  # limits the cost of operations per example
_MIN_BATCHES_PER_EPOCH = 100  # for small datasets of short examples
_MIN_VOCAB_SIZE, _MAX_VOCAB_SIZE = 512, 10_000


def count_dataset_tokens(data: MiniFormerDataModule, split: str) -> int | None:
    """Counts tokens, or vectors, of train, val or test; None: not all are in memory."""
    return data.num_tokens(split) or None


def default_batch_size(total_tokens: int, row_tokens: float, num_devices: int = 1) -> int:
    """Default windows or examples of a batch on each device, for losses per token.

    Args:
        total_tokens: tokens of the training data.
        row_tokens: tokens of a window, or of an average example.
        num_devices: devices that share a batch.
    """
    batch_tokens = min(max(total_tokens / 1_000, _MIN_BATCH_TOKENS), _MAX_BATCH_TOKENS)
    limit = max(DEFAULT_BATCH_SIZE, round(total_tokens / row_tokens / _MIN_BATCHES_PER_EPOCH))
    return max(1, min(_MAX_BATCH_SIZE, limit, round(batch_tokens / row_tokens)) // num_devices)


def default_vocab_size(n_bytes: int) -> int:
    """Default vocabulary size of a language model for a text of `n_bytes`.

    The number of distinct words grows with the square root of the text length (Heaps 1978).
    """
    return min(max(round(math.sqrt(n_bytes)), _MIN_VOCAB_SIZE), _MAX_VOCAB_SIZE)


def with_default_batch_size(
    config: TrainConfig, data: MiniFormerDataModule
) -> tuple[TrainConfig, str | None]:
    """Fills in the batch size; returns a line about it if it depends on the data.

    Args:
        config: the run.
        data: the datamodule, set up; its batch size is set as well.
    """
    if config.batch_size is not None:
        return config, None
    size, batch_tokens, line = DEFAULT_BATCH_SIZE, config.batch_tokens, None
    if data.task.per_token_loss and batch_tokens is None:
        tokens, row_tokens = count_dataset_tokens(data, "train"), data.row_tokens("train")
        suffix = "" if config.world_size == 1 else " on each device"
        if tokens is None or row_tokens is None:  # data that is not in memory is not counted
            batch_tokens = _MAX_BATCH_TOKENS // config.world_size
            line = f"batches: up to {batch_tokens:,} tokens{suffix}"
        else:
            size = default_batch_size(tokens, row_tokens, config.world_size)
            line = f"batches: {size} x {row_tokens:,.0f} tokens{suffix}"
    if config.find_batch_size:
        line = None  # find_batch_size replaces this default
    data.batch_size, data.batch_tokens = size, batch_tokens
    return dataclasses.replace(config, batch_size=size, batch_tokens=batch_tokens), line


def with_default_model_size(
    config: TrainConfig, data: MiniFormerDataModule
) -> tuple[TrainConfig, str | None]:
    """Fills in the model size; returns a line about it if it depends on the data.

    Args:
        config: the run; returned unchanged with `init_from` or a shape in `model_config`.
        data: the datamodule, set up.
    """
    has_shape = any(name in config.model_config for name in SHAPE_FIELDS)
    if config.init_from is not None or (has_shape and config.model_size is None):
        return config, None
    tokens = count_dataset_tokens(data, "train")
    size = config.model_size or size_for_tokens(tokens)
    sized = dataclasses.replace(config, model_config={**SIZE_PRESETS[size], **config.model_config})
    if config.model_size is not None:
        return sized, None
    amount = "data that is not in memory" if tokens is None else f"{tokens:,} training tokens"
    width, layers = (sized.model_config[name] for name in ("d_model", "n_layers"))
    return sized, f"size: {size} ({layers} layers, d_model {width}), for {amount}"
