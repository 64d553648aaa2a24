"""How large a model is that nobody gave a size: as its data is enough for."""

from __future__ import annotations

import dataclasses

from miniformer.config.presets import SHAPE, SIZES, size_for
from miniformer.data.datamodule import MiniFormerDataModule
from miniformer.train_config import TrainConfig


def tokens_of(data: MiniFormerDataModule, name: str) -> int | None:
    """Tokens, or vectors, of train, val or test; None: they are not all in memory."""
    counts = [data.count(name, column) for column in ("ids", "inputs", "source", "labels")]
    texts = [count for count in counts[:2] if count is not None]
    pairs = [count for count in counts[2:] if count is not None]
    return sum(texts or pairs) or None


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
