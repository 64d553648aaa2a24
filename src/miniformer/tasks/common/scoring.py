"""How likely given text is: log-probabilities of its tokens, and the perplexity of a file.

A text longer than the model reads goes through windows: each but the first scores its last `stride`
tokens, so that every token sees at least `max_seq_len - stride` before it, or all there are.

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
from miniformer.generation.modes import eval_mode

_BATCH_TOKENS = 4096  # of windows that the model reads at once
_MAX_LOGITS = 2**24  # numbers of logits that are in memory at once


@dataclasses.dataclass(frozen=True)
class ScoredText:
    """A text and how likely it is.

    Args:
        tokens: its token ids.
        log_p: the log-probability of each, in nats, given those before it.
        greedy: whether each is the likeliest of all there, that greedy decoding would choose.
    """

    tokens: list[int]
    log_probs: list[float]
    is_greedy: list[bool]

    @property
    def total_log_prob(self) -> float:
        """The text's log-probability, in nats."""
        return math.fsum(self.log_probs)


def score(
    model: Any,
    inputs: Sequence[GenerationInput],
    texts: Sequence[Sequence[int]],
    *,
    stride: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[ScoredText]:
    """How likely each text is after its start.

    Args:
        model: a causal Transformer, or a Seq2SeqTransformer where starts have sources.
        starts: what comes before the texts.
        texts: token ids.
        stride: see above; None: half of what the model reads.
        progress: told the windows done, and all of them.

    Raises:
        UserError: the stride is not between 1 and max_seq_len, or a target is too long.
    """
    longest = model.config.max_seq_len
    stride = max(1, longest // 2) if stride is None else stride
    if not 1 <= stride <= longest:
        raise UserError(f"stride must be between 1 and max_seq_len={longest}, not {stride}")
    rows = [[*start.input_ids, *text] for start, text in zip(inputs, texts, strict=True)]
    windows = []
    for number, (row, start) in enumerate(zip(rows, inputs, strict=True)):
        if start.source is not None and len(row) - 1 > longest:
            raise UserError(
                f"target {number} is {len(row) - 1} tokens long; the model writes at most {longest}"
            )
        windows += [
            (number, *each) for each in _windows(len(row), len(start.input_ids), longest, stride)
        ]
    found: list[list[tuple[float, bool]]] = [[] for _ in rows]
    windows.sort(key=lambda each: each[2] - each[1])
    done = 0
    scored: dict[tuple[int, int], list[tuple[float, bool]]] = {}
    with eval_mode(model), torch.inference_mode():
        for some in _length_batches(windows):
            parts = [rows[number][begin : end + 1] for number, begin, end, _ in some]
            sources = [inputs[number].source for number, *_ in some]
            firsts = [first - begin - 1 for _, begin, _, first in some]
            for (number, begin, *_), each in zip(
                some, _score_batch(model, parts, sources, firsts), strict=True
            ):
                scored[number, begin] = each
            done += len(some)
            if progress is not None:
                progress(done, len(windows))
    for number, begin in sorted(scored):
        found[number] += scored[number, begin]
    return [
        ScoredText([*text], [log_p for log_p, _ in each], [greedy for _, greedy in each])
        for text, each in zip(texts, found, strict=True)
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

    A document's end is predicted, too, as in training; each word and each end of a line counts as a
    word, as the WikiText figures of the literature do.

    Args:
        task: language modelling.
        model, tokenizer: its own.
        records: texts.
        stride, progress: see `score`.
    """
    documents: list[list[int]] = []
    n_bytes = words = 0
    for record in records:
        (example,) = task.encode([record], tokenizer, model.config.max_seq_len)
        text = record["text"]
        n_bytes, words = n_bytes + len(text.encode()), words + len(text.split()) + text.count("\n")
        if record.get("continues") and documents:
            documents[-1] += example["ids"].tolist()
        else:
            documents.append(example["ids"].tolist())
    if task.prepends_bos() and tokenizer.bos_id == tokenizer.eos_id:
        documents = [[*ids, tokenizer.eos_id] for ids in documents]
    documents = [ids for ids in documents if len(ids) > 1]
    if not documents or not n_bytes:
        raise UserError(f"{records.name}: every record's text is empty")
    starts = [GenerationInput(ids[:1]) for ids in documents]
    texts = [ids[1:] for ids in documents]
    scored = score(model, starts, texts, stride=stride, progress=progress)
    total, count = -math.fsum(each.total_log_prob for each in scored), sum(map(len, texts))
    return {
        "tokens": count,
        "loss": total / count,
        "perplexity": math.exp(min(total / count, 700.0)),
        "bits_per_byte": total / math.log(2) / n_bytes,
        "word_perplexity": math.exp(min(total / max(1, words), 700.0)),
    }


def _windows(
    length: int, first_scored: int, max_length: int, stride: int
) -> Iterator[tuple[int, int, int]]:
    """Inputs [begin, end) of each window, and the place of the first token that it scores.

    Args:
        length: of the row.
        first: the place of the first token to be scored.
        longest: inputs of a window at most.
        stride: tokens that each but the first scores.
    """
    end = min(max_length, length - 1)
    begin = 0
    if end < first_scored:  # a start longer than a window: its end is what is read
        end = min(first_scored - 1 + stride, length - 1)
        begin = max(0, end - max_length)
    while first_scored < length:
        yield begin, end, first_scored
        first_scored, end = end + 1, min(end + stride, length - 1)
        begin = max(0, end - max_length)


def _length_batches(
    windows: list[tuple[int, int, int, int]],
) -> Iterator[list[tuple[int, int, int, int]]]:
    """Windows of like length, as many as are read at once."""
    some: list[tuple[int, int, int, int]] = []
    for window in windows:
        length = window[2] - window[1]
        if some and (len(some) + 1) * length > _BATCH_TOKENS:
            yield some
            some = []
        some.append(window)
    if some:
        yield some


def _score_batch(
    model: Any,
    token_rows: list[list[int]],
    sources: list[Sequence[int] | None],
    first_scored: list[int],
) -> list[list[tuple[float, bool]]]:
    """What `Scored` has of each part's tokens, from its input number `first` on."""
    device = next(model.parameters()).device
    ids, mask = pad_sequences([np.array(part[:-1]) for part in token_rows])
    memory = []
    if sources[0] is not None:
        source, real = pad_sequences([np.array(each or []) for each in sources])
        memory = [model.encode(source.to(device), None if real is None else real.to(device))]
    features = model.features(
        ids.to(device), *memory, None if mask is None else mask.to(device)
    )  # [B, T, D]
    kept = [features[row, first : len(part) - 1] for row, (part, first) in
            enumerate(zip(token_rows, first_scored, strict=True))]  # fmt: skip
    labels = [part[first + 1 :] for part, first in zip(token_rows, first_scored, strict=True)]
    found = _label_log_probs(
        model, torch.cat(kept), torch.tensor([i for row in labels for i in row])
    )
    return [[next(found) for _ in row] for row in labels]


def _label_log_probs(model: Any, features: Tensor, labels: Tensor) -> Iterator[tuple[float, bool]]:
    """Each label's log-probability, and whether it is the likeliest; features: [N, D]."""
    at_once = max(1, _MAX_LOGITS // model.config.vocab_size)
    for some, wanted in zip(
        torch.split(features, at_once), torch.split(labels, at_once), strict=True
    ):
        log_p = model.logits(some).float().log_softmax(-1).cpu()
        yield from zip(
            log_p.gather(1, wanted[:, None])[:, 0].tolist(),
            (log_p.argmax(-1) == wanted).tolist(),
            strict=True,
        )
