"""Targets that a model generates in an evaluation: decoding, metrics and results by record.

sources of a batch -> generated ids, references -> texts -> exact match, BLEU, chrF
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from miniformer.config import GenerationConfig
from miniformer.data.batching.length_bucketing import Batch
from miniformer.data.batching.packing import IGNORE_INDEX
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.generation.api import GenerationInput, generate
from miniformer.tasks.base import BatchStats, concat_batches
from miniformer.tasks.common.record_results import RecordResults, sum_by_record
from miniformer.tasks.common.text_metrics import (
    compute_text_metrics,
    exact_matches,
    round_trip,
    text_statistics,
)


def generate_targets(
    model: Any, batch: Batch, sources: list[Any], options: GenerationConfig
) -> BatchStats:
    """Generated token ids of sources, their reference texts, and the name of the decoding method.

    Args:
        model: in eval mode.
        batch: of `collate_seq2seq`, with `references` and `end_id`.
        sources: its first sources, without padding.
        options: number of beams and length penalty.
    """
    max_target_len = int((batch["labels"] != IGNORE_INDEX).sum(1).max())
    options = dataclasses.replace(  # stops generation far beyond the longest target
        options,
        max_new_tokens=min(2 * max_target_len + 10, model.config.max_seq_len - 1),
        temperature=0.0,
        eos_id=batch["end_id"],
    )
    start, beams = [int(batch["target"][0, 0])], options.num_beams
    outputs = generate(model, [GenerationInput(start, source) for source in sources], options)
    return {
        "generated": [output.tokens for output in outputs],
        "references": batch["references"][: len(sources)],
        "decoding": "greedy decoding" if beams == 1 else f"beam search with {beams} beams",
    }


def text_metrics(batch_stats: Sequence[BatchStats], tokenizer: Tokenizer) -> dict[str, float]:
    """Exact match, BLEU and chrF; {} if no text was generated.

    References are targets after encoding and decoding, see `round_trip`.

    Args:
        batch_stats: some of them with the results of `generate_targets`.
        tokenizer: decodes generated tokens.
    """
    references = _references(batch_stats)
    if not references:
        return {}
    rows = [ids for stats in batch_stats for ids in stats.get("generated", [])]
    predictions = [tokenizer.decode(ids) for ids in rows]
    return compute_text_metrics(predictions, round_trip(tokenizer, references))


def make_results(batch_stats: Sequence[BatchStats], tokenizer: Tokenizer | None) -> RecordResults:
    """Results of each record; predictions are generated texts, if all records have them.

    Args:
        batch_stats: with the statistics of `TokenLossRecorder` and of `generate_targets`.
        tokenizer: decodes generated tokens; None: results have no predictions.
    """
    losses, tokens, indices = (
        concat_batches(batch_stats, name).numpy()
        for name in ("token_losses", "token_records", "records")
    )
    _, loss, count = sum_by_record(tokens, losses, np.ones(len(losses)))
    order = np.argsort(indices, kind="stable")
    results = RecordResults(
        indices[order], [None] * len(order), [None] * len(order), loss / count, count
    )
    references = _references(batch_stats)
    if not references or tokenizer is None:
        return results
    rows = [ids for stats in batch_stats for ids in stats["generated"]]
    predictions = [tokenizer.decode(rows[row]) for row in order]
    truths = [references[row] for row in order]
    expected = round_trip(tokenizer, truths)
    return dataclasses.replace(
        results,
        predictions=predictions,
        truths=truths,
        correct=exact_matches(predictions, expected),
        statistics=text_statistics(predictions, expected),
    )


def describe_decoding(batch_stats: Sequence[BatchStats]) -> str:
    """Decoding method and number of examples of the text metrics; empty without them."""
    count = len(_references(batch_stats))
    if not count:
        return ""
    decoding = {stats["decoding"] for stats in batch_stats if "decoding" in stats}
    return f"Exact match, BLEU, chrF: {', '.join(decoding)}, {count:,} examples, sacrebleu."


def _references(batch_stats: Sequence[BatchStats]) -> list[str]:
    return [text for stats in batch_stats for text in stats.get("references", [])]
