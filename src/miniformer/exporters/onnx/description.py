"""`export.json`: what a runner must know beside the graphs."""

from __future__ import annotations

from typing import Any

from miniformer import __version__
from miniformer.exporters.source import Source

FORMAT = 1


def describe(source: Source, files: dict[str, str], weights: str) -> dict[str, Any]:
    """The content of `export.json`.

    Args:
        source: the model.
        files: graphs by part: `model`, or `decoder`, or `encoder` and `decoder`.
        weights: type of the stored weights.
    """
    config = source.config
    return {
        "format": FORMAT,
        "miniformer": __version__,
        "files": files,
        "weights": weights,
        "max_seq_len": config.max_seq_len,
        "vocab_size": config.vocab_size,
        "task": None if source.task is None else source.task.settings(),
        "generation": None if source.generation is None else source.generation.to_dict(),
    }
