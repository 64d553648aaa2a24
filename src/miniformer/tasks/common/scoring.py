"""Scoring: log-probabilities of given texts, and the perplexity of a file.

A text longer than `max_seq_len` is scored in overlapping windows. Each window but the first scores
its last `stride` tokens, so that every token has a context of at least `max_seq_len - stride`.

    tokens     | a b c d e f g h i j
    1st window | a b c d e            scores b c d e f      (max_seq_len 5, stride 3)
    2nd window |       d e f g h      scores g h i
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from miniformer.config import UserError
from miniformer.data.batching.length_bucketing import pad_sequences
from miniformer.data.reading.records import Records
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.generation.api import GenerationInput
from miniformer.generation.inference import eval_mode

_BATCH_TOKENS = 4096  # of the windows of a batch
_MAX_LOGITS = 2**24  # elements of logits in memory


@dataclasses.dataclass(frozen=True)
class ScoredText:
    """Log-probabilities of a text.

    Args:
        tokens: its token ids.
        logprobs: log-probability of each token, in nats, given the tokens before it.
        is_greedy: true for each token that is the most probable one.
    """

    tokens: list[int]
    logprobs: list[float]
    is_greedy: list[bool]

    @property
    def total_logprob(self) -> float:
        """Log-probability of the text, in nats."""
        return math.fsum(self.logprobs)


def score(
    model: Any,
    inputs: Sequence[GenerationInput],
    texts: Sequence[Sequence[int]],
    *,
    stride: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[ScoredText]:
    """Scores each text given its input.

    Args:
        model: a causal Transformer, or a Seq2SeqTransformer if inputs have sources.
        inputs: prompts or sources of the texts.
        texts: token ids.
        stride: see above; None: half of `max_seq_len`.
        progress: called with the number of scored windows and of all windows.

    Raises:
        UserError: the stride is not between 1 and max_seq_len, or a target is too long.
    """
    max_length = model.config.max_seq_len
    stride = max(1, max_length // 2) if stride is None else stride
    if not 1 <= stride <= max_length:
        raise UserError(f"stride must be between 1 and max_seq_len={max_length}, not {stride}")
    rows = [[*start.input_ids, *text] for start, text in zip(inputs, texts, strict=True)]
    windows = []
    for number, (row, start) in enumerate(zip(rows, inputs, strict=True)):
        if start.source is not None and len(row) - 1 > max_length:
            raise UserError(
                f"target {number} is {len(row) - 1} tokens long; the model generates at most "
                f"{max_length}"
            )
        first_scored = len(start.input_ids)
        windows += [
            (number, *window) for window in _windows(len(row), first_scored, max_length, stride)
        ]
    windows.sort(key=lambda window: window[2] - window[1])
    done = 0
    scored: dict[tuple[int, int], list[tuple[float, bool]]] = {}
    with eval_mode(model), torch.inference_mode():
        for batch in _length_batches(windows):
            token_rows = [rows[number][begin : end + 1] for number, begin, end, _ in batch]
            sources: list[Any] = [inputs[number].source for number, *_ in batch]
            firsts = [first - begin - 1 for _, begin, _, first in batch]
            scores = _score_batch(model, token_rows, sources, firsts)
            for (number, begin, *_), window_scores in zip(batch, scores, strict=True):
                scored[number, begin] = window_scores
            done += len(batch)
            if progress is not None:
                progress(done, len(windows))
    merged: list[list[tuple[float, bool]]] = [[] for _ in rows]
    for number, begin in sorted(scored):
        merged[number] += scored[number, begin]
    return [
        ScoredText([*text], [logprob for logprob, _ in row], [greedy for _, greedy in row])
        for text, row in zip(texts, merged, strict=True)
    ]


def perplexity(
    task: Any,
    model: Any,
    tokenizer: Tokenizer,
    records: Records,
    *,
    stride: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Loss, perplexity, bits per byte and perplexity per word of a file's texts.

    EOS is predicted, too, as in training. Each word and each line end counts as a word, as in
    published WikiText perplexities.

    Args:
        task: language modeling.
        model, tokenizer: the model and its tokenizer.
        records: texts.
        stride, progress: see `score`.
    """
    documents: list[list[int]] = []
    n_bytes = num_words = 0
    for record in records:
        (example,) = task.encode([record], tokenizer, model.config.max_seq_len)
        text = record["text"]
        n_bytes += len(text.encode())
        num_words += len(text.split()) + text.count("\n")
        if record.get("continues") and documents:
            documents[-1] += example["ids"].tolist()
        else:
            documents.append(example["ids"].tolist())
    if task.prepend_bos and tokenizer.bos_id == tokenizer.eos_id:
        documents = [[*ids, tokenizer.eos_id] for ids in documents]
    documents = [ids for ids in documents if len(ids) > 1]
    if not documents or not n_bytes:
        raise UserError(f"{records.name}: every record's text is empty")
    inputs = [GenerationInput(ids[:1]) for ids in documents]
    texts = [ids[1:] for ids in documents]
    scored = score(model, inputs, texts, stride=stride, progress=progress)
    total, count = -math.fsum(text.total_logprob for text in scored), sum(map(len, texts))
    return {
        "tokens": count,
        "loss": total / count,
        "perplexity": math.exp(min(total / count, 700.0)),
        "bits_per_byte": total / math.log(2) / n_bytes,
        "word_perplexity": math.exp(min(total / max(1, num_words), 700.0)),
    }


def _windows(
    length: int, first_scored: int, max_length: int, stride: int
) -> Iterator[tuple[int, int, int]]:
    """Yields the inputs [begin, end) of each window, and the index of its first scored token.

    Args:
        length: of the row.
        first_scored: index of the first token to score.
        max_length: maximum length of a window.
        stride: number of tokens that each window but the first scores.
    """
    end = min(max_length, length - 1)
    begin = 0
    if end < first_scored:  # a prompt longer than a window is truncated
        end = min(first_scored - 1 + stride, length - 1)
        begin = max(0, end - max_length)
    while first_scored < length:
        yield begin, end, first_scored
        first_scored, end = end + 1, min(end + stride, length - 1)
        begin = max(0, end - max_length)


def _length_batches(
    windows: list[tuple[int, int, int, int]],
) -> Iterator[list[tuple[int, int, int, int]]]:
    """Groups windows, sorted by length, into batches of up to `_BATCH_TOKENS` tokens."""
    batch: list[tuple[int, int, int, int]] = []
    for window in windows:
        length = window[2] - window[1]
        if batch and (len(batch) + 1) * length > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def _score_batch(
    model: Any,
    token_rows: list[list[int]],
    sources: list[Sequence[int] | None],
    first_scored: list[int],
) -> list[list[tuple[float, bool]]]:
    """Log-probability and greedy flag of each row's tokens after input `first_scored`."""
    device = next(model.parameters()).device
    ids, mask = pad_sequences([np.array(row[:-1]) for row in token_rows])
    memory = []
    if sources[0] is not None:
        padded, source_mask = pad_sequences([np.array(source or []) for source in sources])
        source_mask = None if source_mask is None else source_mask.to(device)
        memory = [model.encode(padded.to(device), source_mask)]
    features = model.features(
        ids.to(device), *memory, None if mask is None else mask.to(device)
    )  # [B, T, D]
    pairs = list(zip(token_rows, first_scored, strict=True))
    scored = [features[n, first : len(row) - 1] for n, (row, first) in enumerate(pairs)]
    labels = [row[first + 1 :] for row, first in pairs]
    scores = _label_logprobs(
        model, torch.cat(scored), torch.tensor([i for row in labels for i in row])
    )
    return [[next(scores) for _ in row] for row in labels]


def _label_logprobs(model: Any, features: Tensor, labels: Tensor) -> Iterator[tuple[float, bool]]:
    """Yields log-probability and greedy flag of each label; features: [N, D]."""
    size = max(1, _MAX_LOGITS // model.config.vocab_size)
    for chunk, chunk_labels in zip(
        torch.split(features, size), torch.split(labels, size), strict=True
    ):
        logprobs = model.logits(chunk).float().log_softmax(-1).cpu()
        yield from zip(
            logprobs.gather(1, chunk_labels[:, None])[:, 0].tolist(),
            (logprobs.argmax(-1) == chunk_labels).tolist(),
            strict=True,
        )
