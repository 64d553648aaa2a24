"""Reads the tokenizer, task and decoding options of a model directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from miniformer import registry
from miniformer.checkpoint.directory import HF_METADATA
from miniformer.config import ConfigError, GenerationConfig, TransformerConfig, UserError
from miniformer.config.renames import TASK_OPTIONS
from miniformer.config.strict import rename_keys
from miniformer.data.chat import read_template
from miniformer.data.tokenizers.tokenizer import SOURCE_TOKENIZER, Tokenizer
from miniformer.model.seq2seq import Seq2SeqTransformer
from miniformer.model.transformer import Transformer
from miniformer.tasks.base import Task
from miniformer.utils.jsonl import read_json

MODEL_CLASSES: dict[str, type[Transformer] | type[Seq2SeqTransformer]] = {
    "encoder": Transformer,
    "seq2seq": Seq2SeqTransformer,
}


def read_artifacts(
    directory: Path, architecture: str, config: TransformerConfig
) -> tuple[Tokenizer | None, Task, GenerationConfig]:
    """Reads the tokenizer, task and decoding options of a model directory.

    Raises:
        UserError: a file is missing or broken, or files do not fit each other.
    """
    task = read_task(directory / "task.json", get_model_kind(directory, architecture))
    tokenizer = None
    # An imported model may have no tokenizer and take token ids only.
    ids_only = (directory / HF_METADATA).exists() and not (directory / "tokenizer.json").exists()
    if task.reads_text() and not ids_only:
        tokenizer = _read_tokenizer(directory / "tokenizer.json", "vocab_size", config)
        if config.source_vocab_size is not None:
            path = directory / SOURCE_TOKENIZER / "tokenizer.json"
            tokenizer.separate_source_tokenizer = _read_tokenizer(path, "source_vocab_size", config)
    return tokenizer, task, GenerationConfig.from_file(directory / "generation_config.json")


def get_model_kind(directory: Path, architecture: str) -> str:
    """Model kind of an architecture: encoder or seq2seq.

    Raises:
        UserError: the architecture is unknown.
    """
    kinds = {model.__name__: kind for kind, model in MODEL_CLASSES.items()}
    if architecture not in kinds:
        known = " or a ".join(kinds)
        raise UserError(f"{directory}/config.json: holds a {architecture}, not a {known}")
    return kinds[architecture]


def _read_tokenizer(path: Path, size_field: str, config: TransformerConfig) -> Tokenizer:
    """Reads a tokenizer and checks it against the vocabulary size of the config."""
    tokenizer, vocab_size = Tokenizer.from_path(path), getattr(config, size_field)
    if tokenizer.vocab_size > vocab_size:
        raise UserError(
            f"{path}: has {tokenizer.vocab_size} ids, more than the model's "
            f"{size_field}={vocab_size}; they belong to different models"
        )
    return tokenizer


def read_task(path: Path, kind: str) -> Task:
    """Reads the task of a `task.json`, for a model kind.

    Raises:
        UserError: the file is missing or invalid.
    """
    try:
        settings = stored_settings(read_json(path))
        name = settings.pop("task")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; a model directory needs its task") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a task description: {error!r}") from None
    if name not in registry.names("task"):
        raise UserError(
            f"{path}: {registry.unknown_name_message('task', name, registry.names('task'))}"
        )
    task_class = registry.get("task", name)
    if "chat_template" in task_class.__dataclass_fields__ and kind == "encoder":
        settings.setdefault("chat_template", read_template(path.parent))
    # Earlier versions used raw features and had no field `standardize`.
    features = settings.get("input_kind") == "features"
    if features and "standardize" in task_class.__dataclass_fields__:
        settings.setdefault("standardize", False)
    try:
        task: Task = task_class.from_dict(settings, stored=True)
        task = task.for_model(kind)
        task.reads_text()
    except ConfigError as error:
        raise UserError(f"{path}: not a task description: {error}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return task


def stored_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Content of a `task.json` under current names, without the automatic options of version 0.1.

    There, null meant that tokens of pairs are marked except in masked LM, that BOS is prepended to
    prompts, and auto that a task was not fitted to a series.
    """
    name = settings.get("task")
    if not isinstance(name, str):
        return settings
    name = registry.current_name("task", name)
    current, _ = rename_keys(settings, TASK_OPTIONS.get(name, {}), warn=False)
    if "shared_token_types" in current and current["shared_token_types"] is None:
        is_pair = current.get("input_kind") == "pair"
        current["shared_token_types"] = is_pair and name != "masked_lm"
    automatic = (("prepend_bos", None), ("target_delta_of", "auto"))
    current = {key: value for key, value in current.items() if (key, value) not in automatic}
    return {**current, "task": name}
