"""The model that an exporter reads: float32 weights without transforms, with tokenizer and task."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from miniformer.checkpoint.artifacts import MODEL_CLASSES, get_model_kind
from miniformer.checkpoint.pipeline import load
from miniformer.config import GenerationConfig, TransformerConfig
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.model.config_file import read_config
from miniformer.model.transforms import merge_transforms
from miniformer.tasks.base import Task


class Source(NamedTuple):
    """A model directory in memory.

    Args:
        model: in eval mode, float32, on the CPU.
        tokenizer, task, generation: None: the directory has only a model.
        directory: its path.
    """

    model: Any
    tokenizer: Tokenizer | None
    task: Task | None
    generation: GenerationConfig | None
    directory: Path

    @property
    def config(self) -> TransformerConfig:
        """Config of the model."""
        config: TransformerConfig = self.model.config
        return config


def read_source(directory: Path) -> Source:
    """Reads a model directory, or the directory of a bare model.

    Raises:
        UserError: as `miniformer.load`.
    """
    if (directory / "config.json").exists() and not (directory / "task.json").exists():
        architecture, _ = read_config(directory)
        model_class = MODEL_CLASSES[get_model_kind(directory, architecture)]
        return Source(_prepare(model_class.from_pretrained(directory)), None, None, None, directory)
    pipeline = load(directory)
    return Source(
        _prepare(pipeline.model), pipeline.tokenizer, pipeline.task, pipeline.generation, directory
    )


def _prepare(model: Any) -> Any:
    return merge_transforms(model).float().eval()
