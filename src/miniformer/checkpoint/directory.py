"""Writing a model directory: everything needed to use a model, and nothing else.

config.json  model.safetensors  format_version     the model
tokenizer.json  task.json  generation_config.json  how to use it
source_tokenizer/tokenizer.json                    of sources, where they have one of their own
README.md (and its pictures)                       the model card: where its figures come from
huggingface.json                                   of an imported model: what ours have no place for
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from miniformer.config import GenerationConfig, UserError
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.model.pretrained import PretrainedMixin
from miniformer.utils.atomic import atomic_directory, write_text

SOURCE_TOKENIZER = "source_tokenizer"
HF_METADATA = "huggingface.json"
# Files that transformers reads a tokenizer from; a model uses those of its class.
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template.jinja", "chat_template.json", "vocab.txt", "vocab.json", "merges.txt"),
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "target_vocab.json"),
    *("source.spm", "target.spm"),
)
CHAT_TEMPLATES = "additional_chat_templates"  # a folder of more templates, by name


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
) -> None:
    """Writes a whole model directory beside `directory`, then puts it in its place.

    Args:
        directory: where it goes; a directory there is replaced only once the new one is complete.
        model: the model.
        tokenizer: its tokenizer; None: it reads no text.
        task: the task's settings, plain JSON types.
        generation: default decoding settings.
        card: text of README.md.
        pictures: files that the card shows.
        remembered: what an import remembered of other formats, see `read_remembered`.
        origin: the directory of the imported model, whose tokenizer's files go as they came.
    """
    with atomic_model_directory(directory) as beside:
        model.save_pretrained(beside)
        if tokenizer is not None:
            tokenizer.save(beside / "tokenizer.json")
            if tokenizer.separate_source_tokenizer is not None:
                (beside / SOURCE_TOKENIZER).mkdir()
                tokenizer.separate_source_tokenizer.save(
                    beside / SOURCE_TOKENIZER / "tokenizer.json"
                )
        write_text(beside / "task.json", json.dumps(task, indent=2) + "\n")
        write_text(
            beside / "generation_config.json", json.dumps(generation.to_dict(), indent=2) + "\n"
        )
        write_text(beside / "README.md", model_card)
        for picture in image_paths:
            shutil.copyfile(picture, beside / picture.name)
        if hf_metadata:
            write_text(beside / HF_METADATA, json.dumps(hf_metadata, indent=2) + "\n")
            if source_directory is not None:  # theirs say more than ours
                for name in tokenizer_files(source_directory):
                    (beside / name).parent.mkdir(exist_ok=True)
                    shutil.copyfile(source_directory / name, beside / name)


def tokenizer_files(directory: Path) -> list[str]:
    """Names of the files in a directory that transformers reads a tokenizer from."""
    templates = sorted(path.name for path in (directory / CHAT_TEMPLATES).glob("*.jinja"))
    names = [*TOKENIZER_FILES, *(f"{CHAT_TEMPLATES}/{name}" for name in templates)]
    return [name for name in names if os.path.lexists(directory / name)]


def read_hf_metadata(directory: Path) -> dict[str, Any]:
    """What an import remembered of other formats' files; of other models nothing.

    Raises:
        UserError: the file is broken.
    """
    path = directory / HF_METADATA
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: must hold an object, not a {type(value).__name__}")
    return value


def require_empty(directory: Path) -> None:
    """Refuses to write where something is.

    Raises:
        UserError: the directory is not empty, or is a file.
    """
    if directory.is_dir() and any(directory.iterdir()):
        raise UserError(f"{directory}: exists and is not empty; name another directory")
    if directory.exists() and not directory.is_dir():
        raise UserError(f"{directory}: is a file; name a directory")


@contextlib.contextmanager
def atomic_model_directory(directory: Path) -> Iterator[Path]:
    """A new folder to write into, which takes the place of `directory` if all goes well.

    Raises:
        UserError: it cannot be written: there is no permission or no room.
    """
    try:
        with atomic_directory(directory) as tmp_path:
            yield tmp_path
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{directory}: cannot be written: {why}") from None
