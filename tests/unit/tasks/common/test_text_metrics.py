"""Exact match, BLEU and chrF with lossless and lossy tokenizers."""

import math
from collections import Counter

import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers

from miniformer.data.reading.records import as_records
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.common.text_metrics import (
    compute_text_metrics,
    lossy_target_warnings,
    resampled_text_metrics,
    round_trip,
    text_statistics,
)
from miniformer.tasks.seq2seq import Seq2Seq

WRITTEN = ["the cat sat on the mat and slept there all day", "a dog barks", "it rains again today"]
WANTED = ["the cat sat on the mat", "a dog barks at night", "it rains again"]


def bleu_by_hand(hypotheses, references):
    """Corpus BLEU of words (Papineni et al. 2002)."""
    actual, counted, lengths = [0] * 4, [0] * 4, [0, 0]
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        h, r = hypothesis.split(), reference.split()
        lengths = [lengths[0] + len(h), lengths[1] + len(r)]
        for n in range(1, 5):
            grams = [Counter(zip(*(x[i:] for i in range(n)), strict=False)) for x in (h, r)]
            actual[n - 1] += sum((grams[0] & grams[1]).values())
            counted[n - 1] += sum(grams[0].values())
    precision = sum(math.log(a / b) for a, b in zip(actual, counted, strict=True)) / 4
    brevity = min(0.0, 1 - lengths[1] / lengths[0])
    return 100 * math.exp(precision + brevity)


@pytest.mark.parametrize("exchanged", [False, True])
@pytest.mark.catches("bleu_exchanges_references")
def test_text_metrics_match_sacrebleu(exchanged):
    """Predictions longer and shorter than references; BLEU is not symmetric."""
    written, expected = (WANTED, WRITTEN) if exchanged else (WRITTEN, WANTED)
    actual = compute_text_metrics(written, expected)
    assert actual["bleu"] == pytest.approx(bleu_by_hand(written, expected), rel=1e-9)
    assert actual["bleu"] == sacrebleu.BLEU().corpus_score(written, [expected]).score
    assert actual["chrf"] == sacrebleu.CHRF().corpus_score(written, [expected]).score
    assert actual["exact_match"] == 0.0
    second = compute_text_metrics(expected, written)
    assert abs(actual["bleu"] - second["bleu"]) > 1
    assert abs(actual["chrf"] - second["chrf"]) > 1


def test_exact_match_does_not_count_spaces_around_a_text():
    assert (
        compute_text_metrics([" a b", "c ", "d  e"], ["a b\n", "c", "d e"])["exact_match"] == 2 / 3
    )


def lower():
    """A lowercasing word tokenizer, as in many BERT models."""
    backend = Backend(models.WordLevel({"<unk>": 0, "a": 1, "b": 2, ",": 3}, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return Tokenizer(backend)


SENTENCES = ["a , b . don ' t !", "A b,  b", "b"]
TOKENIZERS = {
    **{kind: Tokenizer.train(kind, SENTENCES) for kind in ("wordpiece", "word", "char", "bpe")},
    "lower": lower(),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.catches("references_stay_as_they_are")
def test_exact_match_of_a_perfect_model_is_one_for_any_tokenizer(kind):
    """Predictions equal the tokens of the targets, which are all in the vocabulary."""
    tokenizer, targets = TOKENIZERS[kind], SENTENCES if kind != "lower" else ["a , B", "A b,  b"]
    batch_stats = [
        {"loss": 1.0, "count": 1.0, "generated": tokenizer.encode_batch(targets),
         "references": targets}
    ]  # fmt: skip
    metrics = Seq2Seq().compute_metrics(batch_stats, tokenizer)
    assert metrics["exact_match"] == 1.0
    assert metrics["chrf"] == pytest.approx(100.0)
    records = as_records([{"source": "", "target": x} for x in targets], Seq2Seq().schema)
    messages = list(Seq2Seq().tokenizer_warnings(tokenizer, records))
    changed = [x for x in targets if tokenizer.decode(tokenizer.encode(x)) != x]
    assert len(messages) == bool(changed)
    if changed:
        first = min(changed, key=len)
        decoded = tokenizer.decode(tokenizer.encode(first))
        counts = f"changes {len(changed)} of {len(targets)} targets, such as "
        assert f"warning: the tokenizer {counts}{first!r} to {decoded!r}; " in messages[0]


@pytest.mark.catches("unknown_words_match")
def test_exact_match_of_targets_with_unknown_words_is_zero():
    tokenizer = TOKENIZERS["lower"]
    assert round_trip(tokenizer, ["A dog, b", "A b"]) == ["A dog, b", "a b"]
    written = tokenizer.encode_batch(["a dog, b", "a b"])
    stats = {"loss": 1.0, "count": 1.0, "generated": written, "references": ["A dog, b", "A b"]}
    assert Seq2Seq().compute_metrics([stats], tokenizer)["exact_match"] == 0.5


@given(st.lists(st.text(max_size=20), max_size=5))
def test_round_trip_of_byte_tokenizers_is_lossless(texts):
    for kind in ("byte", "bpe"):
        tokenizer = TOKENIZERS["bpe"] if kind == "bpe" else Tokenizer.train("byte", [])
        assert round_trip(tokenizer, texts) == texts
        assert list(lossy_target_warnings(texts, tokenizer)) == []


def test_lossy_target_warning_shows_an_excerpt():
    (message,) = lossy_target_warnings(["b" + " b" * 100 + " ,"], TOKENIZERS["lower"])
    assert f"'{('b ' * 30)[:60]}...' to '" in message


@pytest.mark.catches("chrf_weighs_precision_like_recall")
@given(
    st.lists(st.tuples(*[st.text("ab .,é", max_size=12)] * 2), min_size=1, max_size=6),
    st.integers(0, 1000),
)
def test_resampled_text_metrics_are_those_of_the_repeated_texts(pairs, seed):
    predictions, references = map(list, zip(*pairs, strict=True))
    rows = np.random.default_rng(seed).integers(0, len(pairs), (3, len(pairs)))
    counts = np.stack([np.bincount(row, minlength=len(pairs)) for row in rows])
    metrics = resampled_text_metrics(text_statistics(predictions, references), counts)
    for k, row in enumerate(rows):
        expected = compute_text_metrics([predictions[n] for n in row], [references[n] for n in row])
        assert {name: values[k] for name, values in metrics.items()} == pytest.approx(expected)
