"""Encoding and collation of inputs: texts, pairs of texts, and feature vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from miniformer.config import InputError, TransformerConfig, UserError
from miniformer.data.batching.columnar import Example
from miniformer.data.batching.length_bucketing import Batch, pad_sequences
from miniformer.data.reading import schema
from miniformer.data.reading.records import Record
from miniformer.data.reading.schema import features_to_array
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.common.standardize import standardize

_NON_MODEL_KEYS = ("inputs", "cut", "record")  # of an example
NON_LABEL_KEYS = ("inputs", "attention_mask", "token_types", "about")  # of a batch


def ids_to_array(ids: Sequence[int], tokenizer: Tokenizer) -> np.ndarray:
    """Token ids in the smallest unsigned type for the vocabulary, int [T]."""
    return np.array(ids, dtype=np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)


def encode_inputs(
    records: Sequence[Record],
    kind: str,
    tokenizer: Tokenizer | None,
    seq_len: int,
    *,
    shared_token_types: bool = False,
) -> list[Example]:
    """Examples with `inputs`, from the `input` of records, and `cut`, the truncated length.

    | kind | inputs                                        | token_types           |
    |------|-----------------------------------------------|-----------------------|
    | text | boundary, text: int [T]                       |                       |
    | pair | boundary, first, boundary, second: int [T]    | 0, 1 from the second  |

    The template of a tokenizer, if it has one, replaces the boundaries. With `shared_token_types`,
    tokens that both texts of a pair contain have type 2 in the first and 3 in the second.
    """
    values = [record["input"] for record in records]
    assert tokenizer is not None
    frame, max_ids = tokenizer.input_template, max(0, seq_len - num_special_tokens(kind, tokenizer))
    if kind == "text":
        return [
            {
                "inputs": ids_to_array([*frame.prefix, *ids[:max_ids], *frame.suffix], tokenizer),
                "cut": max(0, len(ids) - max_ids),
            }
            for ids in tokenizer.encode_batch(values)
        ]
    examples = []
    firsts = tokenizer.encode_batch([value[0] for value in values])
    seconds = tokenizer.encode_batch([value[1] for value in values])
    for first, second in zip(firsts, seconds, strict=True):
        a, b = _truncated_lengths(len(first), len(second), max_ids)
        row = [*frame.prefix, *first[:a], *frame.separator, *second[:b], *frame.suffix]
        types = np.full(len(row), frame.second_type_id, dtype=np.uint8)
        types[: len(frame.prefix) + a] = 0
        types[len(frame.prefix) + a :][: len(frame.separator)] = frame.separator_type_id
        if shared_token_types:
            both = np.intersect1d(first[:a], second[:b])
            types += 2 * np.isin(row, both).astype(np.uint8)
        cut = len(first) + len(second) - a - b
        examples.append({"inputs": ids_to_array(row, tokenizer), "token_types": types, "cut": cut})
    return examples


def encode_features(
    values: Sequence[Any], max_length: int, means: list[float] | None, stds: list[float] | None
) -> list[Example]:
    """Examples with `inputs`, float32 [T, input_dim], and `cut`, the truncated length.

    Args:
        values: lists of vectors.
        max_length: maximum number T of vectors.
        means, stds: statistics of the features, to standardize them; None: they stay as they are.
    """
    if means is None or stds is None:
        arrays = [features_to_array(value) for value in values]
    else:
        arrays = [standardize(features_to_array(x, np.float64), means, stds) for x in values]
    return [
        {"inputs": array[:max_length], "cut": max(0, len(array) - max_length)} for array in arrays
    ]


def num_special_tokens(kind: str, tokenizer: Tokenizer) -> int:
    """Number of tokens that the template adds to an input, text or pair."""
    frame = tokenizer.input_template
    separator = len(frame.separator) if kind == "pair" else 0
    return len(frame.prefix) + separator + len(frame.suffix)


def check_max_seq_len(config: TransformerConfig, min_length: int, inputs: str) -> None:
    """Checks that the model's `max_seq_len` fits the shortest input that is not empty.

    Args:
        config: of the model.
        min_length: tokens of that input.
        inputs: name of the inputs in the message.

    Raises:
        UserError: `max_seq_len` is smaller.
    """
    if config.max_seq_len < min_length:
        raise UserError(
            f"model_config: max_seq_len must be at least {min_length} for {inputs} with this "
            f"tokenizer's special tokens, not {config.max_seq_len}"
        )


def check_inputs(inputs: Sequence[Any], kind: str, width: int | None) -> list[Record]:
    """Converts a user's inputs to records.

    Raises:
        InputError: inputs differ in kind or width from the training data.
    """
    check = input_validator(kind, width)
    records = [{"input": list(item) if isinstance(item, tuple) else item} for item in inputs]
    checked = ((number, check(record["input"])) for number, record in enumerate(records))
    problems = {number: problem for number, problem in checked if problem is not None}
    if problems:
        raise InputError(problems)
    return records


def input_validator(kind: str | None, width: int | None) -> schema.FieldCheck:
    """Returns a check of `input`, optionally of its kind and vector width."""
    descriptions = {"text": "a string", "pair": "two strings", "features": "a list of vectors"}

    def check(value: Any) -> str | None:
        problem = schema.check_model_input(value)
        if problem is not None or kind is None:
            return problem
        actual = schema.input_kind(value)
        if actual != kind:
            return (
                f"is {descriptions[actual]}, where others are {descriptions[kind]}; all must be of "
                "one kind"
            )
        if width is not None and kind == "features" and len(value[0]) != width:
            return f"has vectors of {len(value[0])} numbers, where others have {width}"
        return None

    return check


def _truncated_lengths(first: int, second: int, max_length: int) -> tuple[int, int]:
    """Lengths whose sum is at most `max_length`; the longer one is truncated first."""
    if first + second <= max_length:
        return first, second
    half = max_length // 2
    if first <= half:
        return first, max_length - first
    if second <= max_length - half:
        return max_length - second, second
    return half, max_length - half


def collate_inputs(examples: list[Example], random: np.random.Generator | None = None) -> Batch:
    """Collates `inputs`, int64 [B, T] or float32 [B, T, F], and the other keys of examples.

    Numbers, such as `labels`, become [B]; arrays, such as `token_types`, int64 [B, T], are padded
    with 0 on the right. A batch with padding has `attention_mask`, bool [B, T].
    """
    inputs, mask = pad_sequences([example["inputs"] for example in examples])
    batch: Batch = {"inputs": inputs}
    if mask is not None:
        batch["attention_mask"] = mask
    for name, first in examples[0].items():
        if name in _NON_MODEL_KEYS:
            continue
        values = [example[name] for example in examples]
        is_array = isinstance(first, np.ndarray) and first.ndim > 0
        batch[name] = pad_sequences(values)[0] if is_array else torch.tensor(values)
    return batch


def model_inputs(model: Any, batch: Batch) -> dict[str, Any]:
    """Keyword arguments of `Transformer.features` from a batch of `collate_inputs`."""
    types = batch.get("token_types") if model.config.token_types is not None else None
    mask = batch.get("attention_mask")
    return {"inputs": batch["inputs"], "attention_mask": mask, "token_types": types}
