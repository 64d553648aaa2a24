"""Encodes one input of a user as the model reads it, for each kind of task."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from miniformer.config import UserError
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.generation.api import GenerationInput
from miniformer.tasks.common.input_encoding import check_inputs, collate_inputs, model_inputs
from miniformer.tasks.common.sequence_input import InputTask
from miniformer.tasks.common.text_generation import TextGenerationTask
from miniformer.tasks.embedding import EmbeddingTask
from miniformer.tasks.masked_lm import MASK_TOKEN, MaskedLM, mask_token_id
from miniformer.tasks.tagging.answers import split_inputs
from miniformer.tasks.tagging.word_encoding import collate_words, encode_tokens
from miniformer.tasks.token_classification import TokenClassification


@dataclasses.dataclass
class Reading:
    """An input as the model reads it, and names of its positions.

    Attributes:
        inputs: arguments of the model, with one row.
        tokens: name of each position; of seq2seq, of the decoder.
        token_ids: int [T]; None: the positions are vectors.
        source_tokens: name of each source position of seq2seq; else None.
        first_scored: index of the first token that has a log-probability; None: none has one.
        batch: batch of the task, for tasks whose outputs are no tokens.
        rows: names of the outputs of the head: positions, words, or the input.
    """

    inputs: dict[str, Any]
    tokens: list[str]
    token_ids: list[int] | None = None
    source_tokens: list[str] | None = None
    first_scored: int | None = None
    batch: dict[str, Tensor] | None = None
    rows: list[str] = dataclasses.field(default_factory=list)


def read_input(
    task: Any,
    model: Any,
    tokenizer: Tokenizer | None,
    value: Any,
    target: Sequence[int] | None = None,
    *,
    truncate: bool = False,
) -> Reading:
    """Encodes one input.

    Args:
        task, model, tokenizer: those of the model directory.
        value: in the format of `Pipeline.predict`; of a language model, a text.
        target: token ids of the target of seq2seq.
        truncate: truncate an input that is too long, as training does.

    Raises:
        UserError: the input is too long or of another kind, or the task is unknown.
    """
    reading: Reading
    if isinstance(task, TextGenerationTask):
        assert tokenizer is not None
        reading = _read_generation(task, model, tokenizer, value, target, truncate)
    elif isinstance(task, TokenClassification):
        assert tokenizer is not None
        reading = _read_words(model, tokenizer, value)
    elif isinstance(task, MaskedLM):
        assert tokenizer is not None
        reading = _read_masked(model, tokenizer, value, truncate)
    elif isinstance(task, InputTask):
        reading = _read_record(task, model, tokenizer, value, truncate)
    else:
        raise UserError(f"inspect does not know how task {task.name} reads an input")
    device = next(model.parameters()).device
    for values in (reading.inputs, reading.batch or {}):
        values.update({k: v.to(device) for k, v in values.items() if isinstance(v, Tensor)})
    return reading


def token_names(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Text of each token; its name in the vocabulary where it has no text of its own."""
    names = []
    for token in ids:
        text = tokenizer.decode([token])
        if not text or "\N{REPLACEMENT CHARACTER}" in text:
            text = tokenizer.backend.id_to_token(token) or f"<{token}>"
        names.append(text)
    return names


def check_length(length: int, limit: int) -> None:
    """Raises UserError for an input that is longer than the model reads."""
    if length > limit:
        raise UserError(
            f"the input is {length} tokens long; the model reads at most {limit}; shorten it, or "
            "truncate it"
        )


def _read_generation(
    task: TextGenerationTask,
    model: Any,
    tokenizer: Tokenizer,
    value: Any,
    target: Sequence[int] | None,
    truncate: bool,
) -> Reading:
    limit = model.config.max_seq_len
    start: GenerationInput
    if target is None:  # a text of a causal model, as `score` reads it: without a prompt
        if not isinstance(value, str):
            raise UserError(f"inspect takes one text, a string, not a {type(value).__name__}")
        (start,) = task.generation_inputs(model, tokenizer, [""])
        new: Sequence[int] = tokenizer.encode(value)
    else:
        (start,) = task.generation_inputs(model, tokenizer, [value], truncate=truncate)
        new = target
    ids = [*start.input_ids, *new]
    ids = ids[:limit] if truncate else ids
    check_length(len(ids), limit)
    names = token_names(tokenizer, ids)
    reading = Reading({}, names, ids, first_scored=len(start.input_ids), rows=names)
    row = torch.tensor([ids])
    if start.source is None:
        reading.inputs = {"inputs": row}
        return reading
    source = torch.as_tensor(start.source)
    reading.inputs = {"source": source[None], "target": row}
    is_vectors = source.is_floating_point()
    reading.source_tokens = (
        [str(n) for n in range(len(source))]
        if is_vectors
        else token_names(tokenizer.source_tokenizer, source.tolist())
    )
    return reading


def _read_words(model: Any, tokenizer: Tokenizer, value: Any) -> Reading:
    limit = model.config.max_seq_len
    (row,) = split_inputs([value])
    (windows,) = encode_tokens([row], tokenizer, limit)
    if len(windows) != 1 or windows[0]["cut"]:
        problem = "is empty" if not windows else f"is longer than {limit} tokens"
        raise UserError(f"the input {problem}; inspect reads one window of the model")
    batch = collate_words(windows)
    ids = batch["inputs"][0].tolist()
    names = token_names(tokenizer, ids)
    return Reading(model_inputs(model, batch), names, ids, batch=batch, rows=row)


def _read_masked(model: Any, tokenizer: Tokenizer, value: Any, truncate: bool) -> Reading:
    if not isinstance(value, str):
        raise UserError(f"inspect takes one text, a string, not a {type(value).__name__}")
    frame, mask = tokenizer.input_template, mask_token_id(tokenizer)
    ids: list[int] = []
    for part in tokenizer.encode_batch(value.split(MASK_TOKEN)):
        ids += [mask, *part]
    room = model.config.max_seq_len - len(frame.prefix) - len(frame.suffix)
    ids = ids[1:][:room] if truncate else ids[1:]
    row = [*frame.prefix, *ids, *frame.suffix]
    check_length(len(row), model.config.max_seq_len)
    names = token_names(tokenizer, row)
    return Reading({"inputs": torch.tensor([row])}, names, row, first_scored=0, rows=names)


def _read_record(
    task: InputTask, model: Any, tokenizer: Tokenizer | None, value: Any, truncate: bool
) -> Reading:
    kind, limit = task.resolved_input_kind(), task.max_input_len or model.config.max_seq_len
    records = check_inputs([value], kind, task.input_dim)
    (example,) = task.encode_inputs(records, tokenizer, limit)
    if not (truncate and task.can_truncate()):
        check_length(len(example["inputs"]) + example["cut"], limit)
    batch = collate_inputs([example])
    ids = None if kind == "features" else batch["inputs"][0].tolist()
    if ids is None or tokenizer is None:
        names = [str(n) for n in range(batch["inputs"].shape[1])]
    else:
        names = token_names(tokenizer, ids)
    rows = [] if isinstance(task, EmbeddingTask) else ["input"]
    return Reading(model_inputs(model, batch), names, ids, batch=batch, rows=rows)
