"""What is as large as the data is enough for, where nobody said: batches, a vocabulary, a model."""

from __future__ import annotations

import dataclasses
import math

from miniformer.config.size_presets import SHAPE_FIELDS, SIZE_PRESETS, size_for_tokens
from miniformer.data.datamodule import MiniFormerDataModule
from miniformer.train_config import TrainConfig

DEFAULT_BATCH_SIZE = 16  # windows or examples
# Tokens of a batch where each is learnt from: a thousandth of all, but within these. Little text
# has too few tokens for large batches, and on a CPU small ones cost little more: see ADR 0019.
_MIN_BATCH_TOKENS, _MAX_BATCH_TOKENS = 2_048, 16_384
_MAX_BATCH_SIZE = 256  # of a batch, for what is done example by example
_MIN_BATCHES_PER_EPOCH = 100  # of a pass, where examples are short and few
_MIN_VOCAB_SIZE, _MAX_VOCAB_SIZE = 512, 10_000


def count_dataset_tokens(data: MiniFormerDataModule, split: str) -> int | None:
    """Tokens, or vectors, of train, val or test; None: they are not all in memory."""
    return data.num_tokens(split) or None


def default_batch_size(total_tokens: int, row_tokens: float, num_devices: int = 1) -> int:
    """Windows or examples of a batch, on each device, where each token is learnt from.

    Args:
        tokens: to learn from.
        row_tokens: of a window, or of an example on average.
        devices: that share a batch.
    """
    wanted = min(max(total_tokens / 1_000, _MIN_BATCH_TOKENS), _MAX_BATCH_TOKENS)
    most = max(DEFAULT_BATCH_SIZE, round(total_tokens / row_tokens / _MIN_BATCHES_PER_EPOCH))
    return max(1, min(_MAX_BATCH_SIZE, most, round(wanted / row_tokens)) // num_devices)


def default_vocab_size(n_bytes: int) -> int:
    """Ids of a language model's subwords, for so much text.

    A text's different words grow with the root of its length (Heaps 1978), and so do its subwords.
    """
    return min(max(round(math.sqrt(n_bytes)), _MIN_VOCAB_SIZE), _MAX_VOCAB_SIZE)


def with_default_batch_size(
    config: TrainConfig, data: MiniFormerDataModule
) -> tuple[TrainConfig, str | None]:
    """The run's settings with a batch size filled in, and a line about it where data chose it.

    Args:
        config: the run.
        data: set up; it, too, has that size from now on.
    """
    if config.batch_size is not None:
        return config, None
    size, most, line = DEFAULT_BATCH_SIZE, config.batch_tokens, None
    if data.task.per_token_loss and most is None:
        tokens, row = count_dataset_tokens(data, "train"), data.row_tokens("train")
        each = "" if config.world_size == 1 else " on each device"
        if tokens is None or row is None:  # more than is kept in memory, and counted
            most = _MAX_BATCH_TOKENS // config.world_size
            line = f"batches: up to {most:,} tokens{each}"
        else:
            size = default_batch_size(tokens, row, config.world_size)
            line = f"batches: {size} x {row:,.0f} tokens{each}"
    if config.find_batch_size:
        line = None  # another is to come
    data.batch_size, data.batch_tokens = size, most
    return dataclasses.replace(config, batch_size=size, batch_tokens=most), line


def with_default_model_size(
    config: TrainConfig, data: MiniFormerDataModule
) -> tuple[TrainConfig, str | None]:
    """The run's settings with a size of model filled in, and a line about it where it was chosen.

    Args:
        config: the run; with `init_from`, or with a shape in `model_config`, it stays as it is.
        data: set up.
    """
    chosen = any(name in config.model_config for name in SHAPE_FIELDS)
    if config.init_from is not None or (chosen and config.model_size is None):
        return config, None
    tokens = count_dataset_tokens(data, "train")
    size = config.model_size or size_for_tokens(tokens)
    sized = dataclasses.replace(config, model_config={**SIZE_PRESETS[size], **config.model_config})
    if config.model_size is not None:
        return sized, None
    much = (
        "more data than is kept in memory" if tokens is None else f"{tokens:,} tokens to learn from"
    )
    width, layers = (sized.model_config[name] for name in ("d_model", "n_layers"))
    return sized, f"size: {size} ({layers} layers, d_model {width}), for {much}"
