"""What stands beside the weights in a model directory: tokenizer, task, decoding settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from miniformer import registry
from miniformer.checkpoint.directory import HF_METADATA, SOURCE_TOKENIZER
from miniformer.config import (
    ConfigError,
    GenerationConfig,
    InputError,
    TransformerConfig,
    UserError,
)
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.model.seq2seq import Seq2SeqTransformer
from miniformer.model.transformer import Transformer
from miniformer.tasks.base import Task, stored_settings

MODEL_CLASSES: dict[str, type[Transformer] | type[Seq2SeqTransformer]] = {
    "encoder": Transformer,
    "seq2seq": Seq2SeqTransformer,
}


def read_artifacts(
    directory: Path, architecture: str, config: TransformerConfig
) -> tuple[Tokenizer | None, Task, GenerationConfig]:
    """What stands beside the weights in a model directory.

    Raises:
        UserError: a file is missing or broken, or they do not fit each other.
    """
    task = read_task(directory / "task.json", get_model_kind(directory, architecture))
    tokenizer = None
    # What was imported may have come without a tokenizer: it takes token ids only.
    bare = (directory / HF_METADATA).exists() and not (directory / "tokenizer.json").exists()
    if task.reads_text() and not bare:
        tokenizer = _read_tokenizer(directory / "tokenizer.json", "vocab_size", config)
        if config.source_vocab_size is not None:
            path = directory / SOURCE_TOKENIZER / "tokenizer.json"
            tokenizer.separate_source_tokenizer = _read_tokenizer(path, "source_vocab_size", config)
    return tokenizer, task, GenerationConfig.from_file(directory / "generation_config.json")


def get_model_kind(directory: Path, architecture: str) -> str:
    """The kind of model that an architecture is: encoder or seq2seq.

    Raises:
        UserError: it is neither.
    """
    kinds = {model.__name__: kind for kind, model in MODEL_CLASSES.items()}
    if architecture not in kinds:
        known = " or a ".join(kinds)
        raise UserError(f"{directory}/config.json: holds a {architecture}, not a {known}")
    return kinds[architecture]


def _read_tokenizer(path: Path, size_field: str, config: TransformerConfig) -> Tokenizer:
    """The tokenizer at `path`, whose ids `config` gives room as `name`."""
    tokenizer, room = Tokenizer.from_path(path), getattr(config, size_field)
    if tokenizer.vocab_size > room:
        raise UserError(
            f"{path}: has {tokenizer.vocab_size} ids, more than the model's {size_field}={room}; they "
            "belong to different models"
        )
    return tokenizer


def read_task(path: Path, kind: str) -> Task:
    """The task that a `task.json` describes, as a kind of model learns it.

    Raises:
        UserError: the file is missing, or describes no task.
    """
    try:
        settings = stored_settings(json.loads(path.read_text(encoding="utf-8")))
        name = settings.pop("task")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; a model directory needs its task") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a task description: {error!r}") from None
    if name not in registry.names("task"):
        raise UserError(
            f"{path}: {registry.unknown_name_message('task', name, registry.names('task'))}"
        )
    made_by = registry.get("task", name)
    # Earlier versions read features as they stand, and have no setting that says so.
    if settings.get("input_kind") == "features" and "standardize" in made_by.__dataclass_fields__:
        settings.setdefault("standardize", False)
    try:
        task: Task = made_by.from_dict(settings, stored=True)
        task = task.for_model(kind)
        task.reads_text()
    except ConfigError as error:
        raise UserError(f"{path}: not a task description: {error}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return task


def check_texts(inputs: Sequence[Any]) -> None:
    """Refuses inputs with what is no text, all in one error.

    Raises:
        InputError: a text holds half of a surrogate pair.
    """
    problems: dict[int, str] = {}
    for number, given in enumerate(inputs):
        for text in given if isinstance(given, list | tuple) else [given]:
            try:
                if isinstance(text, str):
                    check_text(text, f"input {number}")
            except UserError as error:
                problems[number] = str(error).removeprefix(f"input {number}")
    if problems:
        raise InputError(problems)


def check_text(text: str, name: str) -> None:
    """Refuses what is no text.

    Raises:
        UserError: it holds half of a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{name}: character {error.start} is {text[error.start]!a}, half of a surrogate "
            f"pair and no text by itself; is the {name.split()[0]} UTF-8?"
        ) from None
