"""What is as large as the data is enough for, where nobody said: batches, a vocabulary, a model."""

from __future__ import annotations

import dataclasses
import math

from miniformer.config.presets import SHAPE, SIZES, size_for
from miniformer.data.datamodule import MiniFormerDataModule
from miniformer.train_config import TrainConfig

USUAL_BATCH = 16  # windows or examples
# Tokens of a batch where each is learnt from: a thousandth of all, but within these. Little text
# has too few tokens for large batches, and on a CPU small ones cost little more: see ADR 0019.
_LEAST_TOKENS, _MOST_TOKENS = 2_048, 16_384
_MOST_ROWS = 256  # of a batch, for what is done example by example
_BATCHES = 100  # of a pass, where examples are short and few
_LEAST_IDS, _MOST_IDS = 512, 10_000


def tokens_of(data: MiniFormerDataModule, name: str) -> int | None:
    """Tokens, or vectors, of train, val or test; None: they are not all in memory."""
    return data.tokens(name) or None


def batch_for(tokens: int, row_tokens: float, devices: int = 1) -> int:
    """Windows or examples of a batch, on each device, where each token is learnt from.

    Args:
        tokens: to learn from.
        row_tokens: of a window, or of an example on average.
        devices: that share a batch.
    """
    wanted = min(max(tokens / 1_000, _LEAST_TOKENS), _MOST_TOKENS)
    most = max(USUAL_BATCH, round(tokens / row_tokens / _BATCHES))
    return max(1, min(_MOST_ROWS, most, round(wanted / row_tokens)) // devices)


def vocabulary_for(n_bytes: int) -> int:
    """Ids of a language model's subwords, for so much text.

    A text's different words grow with the root of its length (Heaps 1978), and so do its subwords.
    """
    return min(max(round(math.sqrt(n_bytes)), _LEAST_IDS), _MOST_IDS)


def with_batches(config: TrainConfig, data: MiniFormerDataModule) -> tuple[TrainConfig, str | None]:
    """The run's settings with a batch size filled in, and a line about it where data chose it.

    Args:
        config: the run.
        data: set up; it, too, has that size from now on.
    """
    if config.batch_size is not None:
        return config, None
    size, most, line = USUAL_BATCH, config.batch_tokens, None
    if data.task.learns_each_token and most is None:
        tokens, row = tokens_of(data, "train"), data.row_tokens("train")
        each = "" if config.world_size == 1 else " on each device"
        if tokens is None or row is None:  # more than is kept in memory, and counted
            most = _MOST_TOKENS // config.world_size
            line = f"batches: up to {most:,} tokens{each}"
        else:
            size = batch_for(tokens, row, config.world_size)
            line = f"batches: {size} x {row:,.0f} tokens{each}"
    if config.find_batch_size:
        line = None  # another is to come
    data.batch_size, data.batch_tokens = size, most
    return dataclasses.replace(config, batch_size=size, batch_tokens=most), line


def with_size(config: TrainConfig, data: MiniFormerDataModule) -> tuple[TrainConfig, str | None]:
    """The run's settings with a size of model filled in, and a line about it where it was chosen.

    Args:
        config: the run; with `init_from`, or with a shape in `model_config`, it stays as it is.
        data: set up.
    """
    chosen = any(name in config.model_config for name in SHAPE)
    if config.init_from is not None or (chosen and config.size is None):
        return config, None
    tokens = tokens_of(data, "train")
    size = config.size or size_for(tokens)
    sized = dataclasses.replace(config, model_config={**SIZES[size], **config.model_config})
    if config.size is not None:
        return sized, None
    much = (
        "more data than is kept in memory" if tokens is None else f"{tokens:,} tokens to learn from"
    )
    width, layers = (sized.model_config[name] for name in ("d_model", "n_layers"))
    return sized, f"size: {size} ({layers} layers, d_model {width}), for {much}"
