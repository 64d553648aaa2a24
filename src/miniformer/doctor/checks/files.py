"""Files of a model directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from miniformer.checkpoint.pipeline import load
from miniformer.config import UserError
from miniformer.doctor.outcome import Note
from miniformer.doctor.subject import load_model


def check_files(directory: Path) -> list[str]:
    """All files load, fit each other and hold finite weights.

    Raises:
        UserError: a file is missing or broken, or files do not fit each other.
    """
    if is_bare(directory):
        bare = Note("a bare model, without task and tokenizer")
        return [*_weight_problems(load_model(directory)), bare]
    pipeline = load(directory)
    model_problems = [*_weight_problems(pipeline.model), *_task_problems(pipeline)]
    return [*model_problems, *_id_problems(pipeline)]


def is_bare(directory: Path) -> bool:
    """True for what `save_pretrained` of a model writes: config and weights alone."""
    names = ("task.json", "tokenizer.json", "generation_config.json", "README.md")
    return not any((directory / name).exists() for name in names)


def _weight_problems(model: Any) -> Iterator[str]:
    for name, weight in model.state_dict().items():
        count = int((~weight.isfinite()).sum()) if weight.is_floating_point() else 0
        if count:
            yield f"{name} has {count:,} values that are NaN or infinite"


def _task_problems(pipeline: Any) -> Iterator[str]:
    """Problems of the config with the task, which training would refuse."""
    if pipeline.tokenizer is None and pipeline.task.reads_text():
        return  # imported without a tokenizer
    try:
        pipeline.task.check(pipeline.model.config, pipeline.tokenizer)
    except UserError as error:
        yield f"config.json and task.json do not fit each other: {error}"
    except NotImplementedError:  # embedding, which is not trained
        return


def _id_problems(pipeline: Any) -> Iterator[str]:
    vocab_size = pipeline.model.config.vocab_size
    for token_id in pipeline.generation.eos_token_ids if pipeline.tokenizer else ():
        if not 0 <= token_id < vocab_size:
            yield (
                f"generation_config.json: eos_token_ids has {token_id}; the model has ids 0 to "
                f"{vocab_size - 1}"
            )
