"""Words and their tokens: encoding, windows of long inputs, and collation.

    words    |        Anna   lives     in
    inputs   | [CLS]  Anna   liv  es   in   [SEP]
    word_ids |   0     1      2    2    3     0       number of the word in the window; 0: none

An input that is too long is divided into overlapping windows, and each word is predicted in one of
them, where it has most context; it has number 0 in the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from miniformer.data.batching.columnar import Example
from miniformer.data.batching.length_bucketing import Batch, pad_sequences
from miniformer.data.batching.packing import IGNORE_INDEX
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.common.input_encoding import ids_to_array
from miniformer.tasks.tagging.word_features import hash_words

_CONTEXT_SHARE = 4  # windows overlap by up to a fourth of their length


class EncodedWord(NamedTuple):
    """Token ids of a word.

    Args:
        ids: the ids, at least one after those of the space.
        num_space: number of leading ids that are the space before the word alone.
    """

    ids: list[int]
    num_space: int


class Window(NamedTuple):
    """Words [start, end), of which [first, last) are predicted."""

    start: int
    end: int
    first: int
    last: int


def encode_words(tokens: Sequence[str], tokenizer: Tokenizer) -> dict[str, EncodedWord]:
    """Token ids of each distinct word, as the tokenizer encodes it inside of a text.

    A space precedes the word if the tokenizer distinguishes words after a space. A word without
    tokens, such as one of control characters, gets the unknown token, or else the EOS token.
    """
    distinct = list(dict.fromkeys(tokens))
    if not _distinguishes_spaces(tokenizer):
        pairs: Any = ((ids, 0) for ids in tokenizer.encode_batch(distinct))
    else:
        encodings = tokenizer.backend.encode_batch(
            [f" {word}" for word in distinct], add_special_tokens=False
        )
        pairs = (
            (list(x.ids), sum(end <= 1 < len(x.ids) for _, end in x.offsets)) for x in encodings
        )
    missing = tokenizer.eos_id if tokenizer.unk_id is None else tokenizer.unk_id
    return {
        word: EncodedWord(ids if len(ids) > space else [*ids, missing], space)
        for word, (ids, space) in zip(distinct, pairs, strict=True)
    }


def _distinguishes_spaces(tokenizer: Tokenizer) -> bool:
    """True unless words have the same tokens at the start of a text and after a space."""
    first, both = tokenizer.encode_batch(["a", "a a"])
    return both != first + first


def encode_tokens(
    tokens: Sequence[Sequence[str]], tokenizer: Tokenizer, seq_len: int
) -> Iterator[list[Example]]:
    """Yields the windows of each input, as examples without labels.

    An example has `inputs` and `word_ids`, int [T]; `record`, the number of its input;
    `first_word`, the index of its first predicted word, and `words_after`, the number of words
    after the last one; `word_hashes`, uint32 [V, H], of all words of the window (see
    `hash_words`), and `context_before`, the number of them before the first predicted one; and
    `cut`, the number of tokens by which words are longer than a window.
    """
    frame = tokenizer.input_template
    max_ids = max(1, seq_len - len(frame.prefix) - len(frame.suffix))
    flat = [word for row in tokens for word in row]
    encoded, hashes = encode_words(flat, tokenizer), hash_words(flat)
    for number, sequence in enumerate(tokens):
        rows = [encoded[word] for word in sequence]
        lengths = [min(len(row.ids), max_ids) for row in rows]
        examples = []
        for window in plan_windows(lengths, max_ids):
            ids, word_ids, cut = list(frame.prefix), [0] * len(frame.prefix), 0
            for index in range(window.start, window.end):
                row, length = rows[index], lengths[index]
                is_predicted = window.first <= index < window.last
                # A truncated word may consist of the space alone.
                space = row.num_space if length > row.num_space else 0
                word_id = index - window.first + 1 if is_predicted else 0
                ids += row.ids[:length]
                word_ids += [0] * space + [word_id] * (length - space)
                cut += len(row.ids) - length if is_predicted else 0
            word_ids += [0] * len(frame.suffix)
            examples.append(
                {
                    "inputs": ids_to_array([*ids, *frame.suffix], tokenizer),
                    "word_ids": np.array(word_ids, dtype=np.uint16),
                    "record": number,
                    "first_word": window.first,
                    "words_after": len(sequence) - window.last,
                    "word_hashes": np.stack(
                        [hashes[word] for word in sequence[window.start : window.end]]
                    ),
                    "context_before": window.first - window.start,
                    "cut": cut,
                }
            )
        yield examples


def plan_windows(lengths: Sequence[int], max_length: int) -> list[Window]:
    """Windows of words of these lengths, at most `max_length` long each.

    Neighbors overlap by up to a fourth of `max_length`. A word of two windows is predicted in the
    one where it is farther from the border.
    """
    if not lengths:
        return []
    ends = [0, *accumulate(lengths)]  # ends[i]: tokens before word i
    spans: list[tuple[int, int]] = []
    start = 0
    while start < len(lengths):
        end = start + 1
        while end < len(lengths) and ends[end + 1] - ends[start] <= max_length:
            end += 1
        if end == len(lengths):  # the last window is as long as possible
            while spans and start > spans[-1][0] + 1 and ends[end] - ends[start - 1] <= max_length:
                start -= 1
            spans.append((start, end))
            break
        spans.append((start, end))
        previous, start = start, end
        while start > previous + 1 and ends[end] - ends[start - 1] <= max_length // _CONTEXT_SHARE:
            start -= 1
        # The next window must reach beyond this one.
        while ends[end + 1] - ends[start] > max_length:
            start += 1
    borders = [0, *((b + c) // 2 for (_, b), (c, _) in pairwise(spans)), len(lengths)]
    return [
        Window(start, end, first, last)
        for (start, end), (first, last) in zip(spans, pairwise(borders), strict=True)
    ]


def collate_words(examples: list[Example], random: np.random.Generator | None = None) -> Batch:
    """Collates windows of words.

    Returns:
        `inputs`, int64 [B, T], with `attention_mask`, bool [B, T], if there is padding; of up to W
        predicted words of each window `word_starts` and `word_lengths`, int64 [B, W], their tokens,
        with length 0 beyond the words of a row, and `labels`, int64 [B, W], with -100 there;
        `word_hashes` of up to V words with their context, int64 [B, V, H], 0 beyond them; and
        `records`, `first_word`, `words_after` and `context_before`, int64 [B].
    """
    inputs, mask = pad_sequences([example["inputs"] for example in examples])
    batch: Batch = {"inputs": inputs}
    if mask is not None:
        batch["attention_mask"] = mask
    starts, lengths = [], []
    for example in examples:
        positions = np.flatnonzero(example["word_ids"])
        _, first, count = np.unique(
            example["word_ids"][positions], return_index=True, return_counts=True
        )
        starts.append(positions[first])
        lengths.append(count)
    batch["word_starts"] = pad_sequences(starts)[0]
    batch["word_lengths"] = pad_sequences(lengths)[0]
    if "labels" in examples[0]:
        batch["labels"] = pad_sequences([x["labels"] for x in examples], IGNORE_INDEX)[0]
    hashes = [torch.from_numpy(x["word_hashes"].astype(np.int64)) for x in examples]
    batch["word_hashes"] = torch.nn.utils.rnn.pad_sequence(hashes, batch_first=True)
    for name in ("record", "first_word", "words_after", "context_before"):
        if name in examples[0]:  # streamed examples have no record
            key = "records" if name == "record" else name
            batch[key] = torch.tensor([int(example[name]) for example in examples])
    return batch


def pooling_weights(starts: Tensor, lengths: Tensor, size: int, pooling: str) -> Tensor:
    """Weights of tokens in the vector of each word, float [B, W, size].

    Matrix products with them are deterministic on a GPU, too, and gradients of gathers are not.

    Args:
        starts, lengths: first token and number of tokens of each word, int [B, W]; a word of
            length 0 has weights of 0.
        size: T.
        pooling: first, last or mean.
    """
    positions = torch.arange(size, device=starts.device)
    starts, lengths = starts[..., None], lengths[..., None]
    if pooling == "first":
        return ((positions == starts) & (lengths > 0)).float()
    if pooling == "last":
        return ((positions == starts + lengths - 1) & (lengths > 0)).float()
    inside = (positions >= starts) & (positions < starts + lengths)
    return inside / lengths.clamp_min(1)
