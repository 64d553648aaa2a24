"""Adds special tokens to a model directory: rows of its embedding and its head."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from miniformer.checkpoint.directory import require_empty, tokenizer_files
from miniformer.checkpoint.pipeline import Pipeline, load
from miniformer.config import UserError
from miniformer.model.config_file import read_description
from miniformer.utils.atomic import write_text


@dataclasses.dataclass(frozen=True)
class AddedTokens:
    """Result of `add_tokens`.

    Args:
        new: token -> id of each new token.
        existing: tokens that the vocabulary had as special tokens.
        vocab_size: rows of the embedding before and after.
    """

    new: dict[str, int]
    existing: list[str]
    vocab_size: tuple[int, int]


def add_tokens(directory: str | Path, out: str | Path, tokens: Sequence[str]) -> AddedTokens:
    """Writes a model directory with further special tokens.

    Their rows of the embedding and of the head, and their biases, are the means of those of the
    tokens so far; all others are as they were. Rows that no token uses are taken first.

    Args:
        directory: a model directory.
        out: the directory to write; it must not exist, or be empty.
        tokens: their texts.

    Raises:
        UserError: the model reads no tokens, is quantized or transformed, a token is empty or
            spaces, all tokens exist, or `out` is not empty.
    """
    out = Path(out)
    require_empty(out)
    for token in tokens:
        if not token.strip():
            raise UserError(f"tokens: {token!r} is empty; name a text such as '<|im_start|>'")
    pipeline = load(directory)
    tokenizer, folder = pipeline.tokenizer, pipeline.directory
    assert folder is not None
    if tokenizer is None:
        raise UserError(f"{directory}: the model reads no text, so that it has no tokens")
    description = read_description(folder)
    if description.is_quantized or description.transforms:
        raise UserError(
            f"{directory}: its weights are quantized or transformed; add tokens to the model before"
        )
    tokens = list(dict.fromkeys(tokens))
    existing = [token for token in tokens if token in tokenizer.added_tokens]
    new = [token for token in tokens if token not in existing]
    if not new:
        raise UserError(f"tokens: {directory} has each of {', '.join(existing)} already")
    used = tokenizer.vocab_size
    tokenizer.add_special_tokens(new)
    ids = {token: cast(int, tokenizer.backend.token_to_id(token)) for token in new}
    config = pipeline.model.config
    size = max(config.vocab_size, tokenizer.vocab_size)
    rows = sorted({*ids.values(), *range(config.vocab_size, size)})
    model = _grow(pipeline.model, size, rows, used)
    _save(pipeline, model, out)
    return AddedTokens(ids, existing, (config.vocab_size, size))


def _grow(model: Any, size: int, rows: list[int], used: int) -> Any:
    """The model with `size` tokens; `rows` are the means of the first `used` ones."""
    config = model.config
    with torch.device("meta"):
        larger = type(model)(dataclasses.replace(config, vocab_size=config.vocab_size + 1))
    shapes = {name: tensor.shape for name, tensor in larger.state_dict().items()}
    result = type(model)(dataclasses.replace(config, vocab_size=size))
    weights = {
        name: _with_rows(tensor, size, rows, used) if shapes[name] != tensor.shape else tensor
        for name, tensor in model.state_dict().items()
    }
    result.load_state_dict(weights, assign=True)
    result.extra_files, result.requires = model.extra_files, model.requires
    return result.eval()


def _with_rows(tensor: Tensor, size: int, rows: list[int], used: int) -> Tensor:
    """A tensor [V, ...] with `size` rows."""
    mean = tensor[:used].double().mean(0).to(tensor.dtype)
    grown = torch.cat([tensor, mean.expand(size - len(tensor), *mean.shape)])
    grown[rows] = mean
    return grown


def _save(pipeline: Pipeline, model: Any, out: Path) -> None:
    """Writes the directory with the new tokenizer, also in the files of an imported one."""
    assert pipeline.tokenizer is not None
    assert pipeline.directory is not None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in tokenizer_files(pipeline.directory):
            (folder / file).parent.mkdir(exist_ok=True)
            shutil.copyfile(pipeline.directory / file, folder / file)
        write_text(folder / "tokenizer.json", pipeline.tokenizer.backend.to_str(pretty=True))
        card = pipeline.directory / "README.md"
        if card.is_file():
            shutil.copyfile(card, folder / "README.md")
        pipeline.model, pipeline.directory = model, folder
        pipeline.save(out)
