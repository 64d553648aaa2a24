"""Saves model directories.

config.json  model.safetensors  format_version     the model
tokenizer.json  task.json  generation_config.json  how to use it
source_tokenizer/tokenizer.json                    the source tokenizer, if it is separate
README.md (and its images)                         the model card
data.json                                          how training read and batched its data
chat_template.jinja                                renders conversations, of a model of chats
huggingface.json                                   metadata of an imported model, for an export
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from miniformer import registry
from miniformer.checkpoint.data_settings import FILE_NAME, StoredDataSettings
from miniformer.config import GenerationConfig, UserError
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.model.pretrained import PretrainedMixin
from miniformer.utils.atomic import atomic_directory, write_json, write_text
from miniformer.utils.jsonl import read_json

HF_METADATA = "huggingface.json"
# Files that transformers reads a tokenizer from; each tokenizer class uses some of them.
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json", "vocab.txt", "vocab.json", "merges.txt"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "target_vocab.json"),
    *("source.spm", "target.spm"),
)
CHAT_TEMPLATE = "chat_template.jinja"
CHAT_TEMPLATES = "additional_chat_templates"  # folder of further templates


def save_directory(
    directory: Path,
    *,
    model: PretrainedMixin,
    tokenizer: Tokenizer | None,
    task: dict[str, Any],
    generation: GenerationConfig,
    model_card: str,
    image_paths: tuple[Path, ...] = (),
    hf_metadata: dict[str, Any] | None = None,
    source_directory: Path | None = None,
    data: StoredDataSettings | None = None,
) -> None:
    """Writes a model directory atomically.

    Args:
        directory: target; an existing directory is replaced once the new one is complete.
        model: the model.
        tokenizer: its tokenizer; None: the model reads no text.
        task: the task's settings, plain JSON types.
        generation: default decoding options.
        model_card: text of README.md.
        image_paths: files that the card shows.
        hf_metadata: metadata of an imported model, see `read_hf_metadata`.
        source_directory: directory of the imported model; its tokenizer files are copied.
        data: how training read and batched its data; None: not known.
    """
    with atomic_model_directory(directory) as tmp_path:
        package = registry.package_of("task", task["task"]) if "task" in task else None
        model.save_pretrained(tmp_path, requires=[] if package is None else [package])
        if tokenizer is not None:
            tokenizer.save(tmp_path / "tokenizer.json")
        template = task.get("chat_template")
        write_json(tmp_path / "task.json", {k: v for k, v in task.items() if k != "chat_template"})
        write_json(tmp_path / "generation_config.json", generation.to_dict())
        if data is not None:
            write_json(tmp_path / FILE_NAME, data.to_dict())
        write_text(tmp_path / "README.md", model_card)
        for path in image_paths:
            shutil.copyfile(path, tmp_path / path.name)
        if hf_metadata:
            write_json(tmp_path / HF_METADATA, hf_metadata)
            if source_directory is not None:  # the original files hold more than `tokenizer`
                for name in tokenizer_files(source_directory):
                    (tmp_path / name).parent.mkdir(exist_ok=True)
                    shutil.copyfile(source_directory / name, tmp_path / name)
        if template is not None:
            write_text(tmp_path / CHAT_TEMPLATE, template)


def tokenizer_files(directory: Path) -> list[str]:
    """Names of the tokenizer files of transformers in a directory."""
    templates = sorted(path.name for path in (directory / CHAT_TEMPLATES).glob("*.jinja"))
    names = [*TOKENIZER_FILES, *(f"{CHAT_TEMPLATES}/{name}" for name in templates)]
    return [name for name in names if os.path.lexists(directory / name)]


def read_hf_metadata(directory: Path) -> dict[str, Any]:
    """Reads the Hugging Face metadata of an imported model; empty for other models.

    Raises:
        UserError: the file is invalid.
    """
    path = directory / HF_METADATA
    try:
        value = read_json(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: must hold an object, not a {type(value).__name__}")
    return value


def require_empty(directory: Path) -> None:
    """Checks that a directory does not exist or is empty.

    Raises:
        UserError: the directory is not empty, or is a file.
    """
    if directory.is_dir() and any(directory.iterdir()):
        raise UserError(f"{directory}: exists and is not empty; name another directory")
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory}: is a file; name a directory")


@contextlib.contextmanager
def atomic_model_directory(directory: Path) -> Iterator[Path]:
    """Yields a temporary folder that replaces `directory` on success.

    Raises:
        UserError: it cannot be written, for lack of permission or space.
    """
    try:
        with atomic_directory(directory) as tmp_path:
            yield tmp_path
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{directory}: cannot be written: {reason}") from None
