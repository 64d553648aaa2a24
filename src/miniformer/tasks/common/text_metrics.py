"""Metrics of generated text, and warnings about tokenizers that do not preserve targets."""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.common.resampling import divide, sum_records, weighted_mean

_CHRF_ORDER, _CHRF_BETA = 6, 2  # defaults of sacrebleu
_MAX_SHOWN_CHARS = 60  # of a text in a message


def compute_text_metrics(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Exact match (a fraction), and BLEU and chrF (0 to 100) if sacrebleu is installed.

    Args:
        predictions: generated texts; surrounding spaces are stripped.
        references: expected texts, in the same order.
    """
    predictions, references = _stripped(predictions), _stripped(references)
    metrics = {"exact_match": sum(map(str.__eq__, predictions, references)) / len(references)}
    if not has_sacrebleu():
        return metrics
    import sacrebleu

    metrics["bleu"] = sacrebleu.corpus_bleu(predictions, [references]).score
    metrics["chrf"] = sacrebleu.corpus_chrf(predictions, [references]).score
    return metrics


def exact_matches(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Equality of each text and its reference without surrounding spaces, bool [N]."""
    pairs = zip(_stripped(predictions), _stripped(references), strict=True)
    return np.array([prediction == reference for prediction, reference in pairs], dtype=bool)


def text_statistics(predictions: Sequence[str], references: Sequence[str]) -> dict[str, np.ndarray]:
    """Statistics of each text whose sums give the metrics of `compute_text_metrics`.

    Returns:
        `exact`, [N]; and if sacrebleu is installed `bleu`, [N, 10]: lengths of text and reference,
        then common and all n-grams of 1 to 4 words; and `chrf`, [N, 6, 3]: n-grams of 1 to 6
        characters in the text, in the reference, and in both.
    """
    statistics = {"exact": exact_matches(predictions, references)}
    if not has_sacrebleu():
        return statistics
    import sacrebleu

    bleu = sacrebleu.BLEU(effective_order=True)  # without a warning; it does not change counts
    scores = [
        bleu.sentence_score(prediction, [reference])
        for prediction, reference in zip(_stripped(predictions), _stripped(references), strict=True)
    ]
    statistics["bleu"] = np.array(
        [[score.sys_len, score.ref_len, *score.counts, *score.totals] for score in scores]
    )
    statistics["chrf"] = np.array(
        [
            [_common_ngrams(prediction, reference, n) for n in range(1, _CHRF_ORDER + 1)]
            for prediction, reference in zip(predictions, references, strict=True)
        ]
    )
    return statistics


def resampled_text_metrics(
    statistics: dict[str, np.ndarray], counts: np.ndarray
) -> dict[str, np.ndarray]:
    """Metrics of `compute_text_metrics` for resamples, float64 [R] each.

    Args:
        statistics: of `text_statistics`; empty: no text was generated.
        counts: times that each resample contains each text, int [R, N].
    """
    if "exact" not in statistics:
        return {}
    exact = statistics["exact"]
    metrics = {"exact_match": weighted_mean(counts, exact, np.ones(len(exact)))}
    if "bleu" not in statistics:
        return metrics
    import sacrebleu

    sums = sum_records(counts, statistics["bleu"]).astype(np.int64).tolist()
    scores = (
        sacrebleu.BLEU.compute_bleu(row[2:6], row[6:], row[0], row[1], smooth_method="exp").score
        for row in sums
    )
    metrics["bleu"] = np.array(list(scores))
    flat = statistics["chrf"].reshape(len(exact), -1)
    metrics["chrf"] = _chrf(sum_records(counts, flat).reshape(len(counts), _CHRF_ORDER, 3))
    return metrics


def _chrf(sums: np.ndarray) -> np.ndarray:
    """chrF2 (Popovic 2015) from n-gram counts [R, orders, 3]; see `text_statistics`."""
    generated, expected, common = np.moveaxis(sums, -1, 0)  # [R, orders] each
    used = (generated > 0) & (expected > 0)
    num_used = np.maximum(1, used.sum(1))
    precision, recall = (
        np.where(used, divide(common, total, 0.0), 0.0).sum(1) / num_used
        for total in (generated, expected)
    )
    beta = _CHRF_BETA**2
    return 100 * divide((1 + beta) * precision * recall, beta * precision + recall, 0.0)


def _common_ngrams(text: str, reference: str, n: int) -> tuple[int, int, int]:
    """Number of character n-grams in a text, in a reference, and in both; without spaces.

    The first is 0 if the reference has no n-gram, as in sacrebleu.
    """
    rows = ["".join(item.split()) for item in (text, reference)]
    ngrams, expected = (Counter(row[i : i + n] for i in range(len(row) - n + 1)) for row in rows)
    generated = ngrams.total() if expected else 0
    return generated, expected.total(), (ngrams & expected).total()


def _stripped(texts: Sequence[str]) -> list[str]:
    return [text.strip() for text in texts]


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
