"""Metrics of generated text, and warnings about tokenizers that do not preserve targets."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence

from miniformer.data.tokenizers.tokenizer import Tokenizer

_MAX_SHOWN_CHARS = 60  # of a text in a message


def compute_text_metrics(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Exact match (a fraction), and BLEU and chrF (0 to 100) if sacrebleu is installed.

    Args:
        predictions: generated texts; surrounding spaces are stripped.
        references: expected texts, in the same order.
    """
    predictions, references = (
        [text.strip() for text in texts] for texts in (predictions, references)
    )
    metrics = {"exact_match": sum(map(str.__eq__, predictions, references)) / len(references)}
    if not has_sacrebleu():
        return metrics
    import sacrebleu

    metrics["bleu"] = sacrebleu.corpus_bleu(predictions, [references]).score
    metrics["chrf"] = sacrebleu.corpus_chrf(predictions, [references]).score
    return metrics


def has_sacrebleu() -> bool:
    """True if sacrebleu is installed."""
    return importlib.util.find_spec("sacrebleu") is not None


def round_trip(tokenizer: Tokenizer, texts: Sequence[str]) -> list[str]:
    """Texts after encoding and decoding: the output of a perfect model.

    A text with unknown tokens is unchanged, since no model can generate it.
    """
    return [
        text if tokenizer.unk_id in ids else tokenizer.decode(ids)
        for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True)
    ]


def lossy_target_warnings(targets: Sequence[str], tokenizer: Tokenizer) -> Iterator[str]:
    """A warning with an example, if the tokenizer does not round-trip the targets."""
    rows = tokenizer.encode_batch(targets)
    pairs = [
        (target.strip(), tokenizer.decode(ids).strip())
        for target, ids in zip(targets, rows, strict=True)
    ]
    changed = [(before, after) for before, after in pairs if before != after]
    if not changed:
        return
    before, after = (repr(_truncated(text)) for text in min(changed, key=lambda pair: len(pair[0])))
    yield (
        f"warning: the tokenizer changes {len(changed):,} of {len(targets):,} targets, such as "
        f"{before} to {after}; the model generates the latter, and exact match, BLEU and "
        "chrF compare with it (--tokenizer bpe preserves any text)"
    )


def _truncated(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + "..."
