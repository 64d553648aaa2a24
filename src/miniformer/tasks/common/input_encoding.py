"""Token ids of texts, as tasks lay them out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from miniformer.config import InputError, TransformerConfig, UserError
from miniformer.data.batching.columnar import Example
from miniformer.data.reading import schema
from miniformer.data.reading.records import Record
from miniformer.data.reading.schema import features_to_array
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.common.standardize import standardize


def ids_to_array(ids: Sequence[int], tokenizer: Tokenizer) -> np.ndarray:
    """Token ids in as few bytes as the vocabulary allows, int [T]."""
    return np.array(ids, dtype=np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)


def encode_inputs(
    records: Sequence[Record],
    kind: str,
    tokenizer: Tokenizer | None,
    seq_len: int,
    *,
    shared_token_types: bool = False,
    feature_scales: tuple[list[float], list[float]] | None = None,
) -> list[Example]:
    """What a model reads of each record's `input`, and the places cut off to keep to `seq_len`.

    | kind     | inputs                                        | token_types           |
    |----------|-----------------------------------------------|-----------------------|
    | text     | boundary, text: int [T]                       |                       |
    | pair     | boundary, first, boundary, second: int [T]    | 0 up to the second's  |
    | features | vectors: float32 [T, input_dim]               |                       |

    Where a tokenizer has a template of its own, that takes the place of the boundaries. With
    `shared_token_types` tokens that both texts of a pair have are of type 2 in the first and 3 in the
    second. With `feature_scales`, the means and standard deviations of the features, vectors are
    standardized.
    """
    values = [record["input"] for record in records]
    if kind == "features":
        if feature_scales is None:
            arrays = [features_to_array(value) for value in values]
        else:
            arrays = [
                standardize(features_to_array(value, np.float64), *feature_scales)
                for value in values
            ]
        return [
            {"inputs": array[:seq_len], "cut": max(0, len(array) - seq_len)} for array in arrays
        ]
    assert tokenizer is not None
    frame, room = tokenizer.input_template, max(0, seq_len - marks(kind, tokenizer))
    if kind == "text":
        return [
            {
                "inputs": ids_to_array([*frame.prefix, *ids[:room], *frame.suffix], tokenizer),
                "cut": max(0, len(ids) - room),
            }
            for ids in tokenizer.encode_batch(values)
        ]
    examples = []
    firsts = tokenizer.encode_batch([value[0] for value in values])
    seconds = tokenizer.encode_batch([value[1] for value in values])
    for first, second in zip(firsts, seconds, strict=True):
        a, b = _truncated_lengths(len(first), len(second), room)
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


def marks(kind: str, tokenizer: Tokenizer) -> int:
    """Number of tokens of an input, text or pair, that are not of its texts."""
    frame = tokenizer.input_template
    between = len(frame.separator) if kind == "pair" else 0
    return len(frame.prefix) + between + len(frame.suffix)


def check_max_seq_len(config: TransformerConfig, least: int, inputs: str) -> None:
    """Refuses a model that is too short for a token of each text.

    Args:
        config: of the model.
        least: tokens of the shortest input that is not empty.
        inputs: their name in the message.

    Raises:
        UserError: `max_seq_len` is less than that.
    """
    if config.max_seq_len < least:
        raise UserError(
            f"model_config: max_seq_len must be at least {least} for {inputs} with the marks of "
            f"this tokenizer, not {config.max_seq_len}"
        )


def check_inputs(inputs: Sequence[Any], kind: str, width: int | None) -> list[Record]:
    """A user's inputs as records.

    Raises:
        InputError: some are not what the model was trained on.
    """
    check = input_validator(kind, width)
    records = [{"input": list(each) if isinstance(each, tuple) else each} for each in inputs]
    found = ((number, check(record["input"])) for number, record in enumerate(records))
    problems = {number: problem for number, problem in found if problem is not None}
    if problems:
        raise InputError(problems)
    return records


def input_validator(kind: str | None, width: int | None) -> schema.FieldCheck:
    """A check of `input`: any, or of one kind and width only."""
    words = {"text": "a string", "pair": "two strings", "features": "a list of vectors"}

    def check(value: Any) -> str | None:
        problem = schema.check_model_input(value)
        if problem is not None or kind is None:
            return problem
        found = schema.input_kind(value)
        if found != kind:
            return f"is {words[found]}, where others are {words[kind]}; all must be of one kind"
        if width is not None and kind == "features" and len(value[0]) != width:
            return f"has vectors of {len(value[0])} numbers, where others have {width}"
        return None

    return check


def _truncated_lengths(first: int, second: int, max_length: int) -> tuple[int, int]:
    """Lengths that fit into `room` together, the longer one cut first."""
    if first + second <= max_length:
        return first, second
    half = max_length // 2
    if first <= half:
        return first, max_length - first
    if second <= max_length - half:
        return max_length - second, second
    return half, max_length - half
