"""BPE dropout: randomly undone merges decode to the same text."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniformer.config import UserError
from miniformer.data.batching.packing import IGNORE_INDEX
from miniformer.data.tokenizers.bpe_dropout import BPEMerges
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.classification import Classification
from miniformer.tasks.masked_lm import MaskedLM
from miniformer.tasks.regression import Regression
from miniformer.tasks.seq2seq import Seq2Seq
from tests.kit import VERSE
from tests.kit.tasks import batches_of

BPE = Tokenizer.train("bpe", [VERSE] * 3, 400)
MERGES = BPEMerges(BPE)
LONGEST = max(range(BPE.vocab_size), key=lambda i: len(BPE.decode([i])))


@pytest.mark.catches("undone_merge_loses_a_token")
@given(
    st.text(max_size=9) | st.lists(st.sampled_from(VERSE.split(" ")), max_size=9).map(" ".join),
    st.integers(0, 99),
    st.sampled_from([0.0, 0.1, 0.5, 0.99]),
)
def test_bpe_dropout_decodes_to_the_same_text(text, seed, share):
    ids = np.array(BPE.encode(text), dtype=np.uint16)
    tokens, positions = MERGES.apply_dropout(ids, share, np.random.default_rng(seed))
    assert BPE.decode(tokens.tolist()) == text
    assert tokens.dtype == ids.dtype
    assert len(tokens) == len(positions)
    for position, token in enumerate(ids.tolist()):  # each token by itself
        assert BPE.decode(tokens[positions == position].tolist()) == BPE.decode([token])
    if share == 0:
        assert tokens.tolist() == ids.tolist()


def test_bpe_dropout_undoes_merges_at_the_given_rate():
    ids = np.full(20_000, LONGEST)
    _, positions = MERGES.apply_dropout(ids, 0.25, np.random.default_rng(0))
    counts = np.bincount(positions)
    assert (counts > 1).mean() == pytest.approx(0.25, abs=0.01)
    # The parts of an undone merge are undone with the same probability, recursively.
    first, second = MERGES.left[LONGEST], MERGES.right[LONGEST]
    merged = 2 - (MERGES.left[[first, second]] < 0).sum()
    more = (counts[counts > 1] > 2).mean()
    assert more == pytest.approx(1 - 0.75**merged, abs=0.02)


def served(task, records, *, tokenizer=BPE, **options):
    return batches_of(task, records, tokenizer, **{"seq_len": 64, "batch_size": 8, **options})


def rows(batch, name, mask):
    real_mask = batch[name] != IGNORE_INDEX if mask is None else batch.get(mask, batch[name] >= 0)
    return [row[real].tolist() for row, real in zip(batch[name], real_mask, strict=True)]


TEXTS = [{"input": line, "label": n % 2} for n, line in enumerate(VERSE.split(",")[:4])]


@pytest.mark.catches("bpe_dropout_stays_on_in_validation")
def test_bpe_dropout_applies_in_training_only_and_depends_on_the_seed():
    task = Classification(bpe_dropout=0.3)
    usual = {line["input"]: BPE.encode(line["input"]) for line in TEXTS}
    seen = []
    for seed in (0, 0, 1):
        (batch,) = served(task, TEXTS, training=True, seed=seed)
        tokens = [row[1:] for row in rows(batch, "inputs", "attention_mask")]
        assert sorted(map(BPE.decode, tokens)) == sorted(usual)
        seen.append({BPE.decode(row): row for row in tokens})
    assert seen[0] == seen[1] != seen[2]
    assert seen[0] != usual
    for batch in served(task, TEXTS, training=False):
        for row in rows(batch, "inputs", "attention_mask"):
            assert row[1:] == usual[BPE.decode(row)]


def test_bpe_dropout_keeps_token_types():
    pairs = [{"input": ["when shall we three", "meet again"], "value": n} for n in range(3)]
    task = Regression(bpe_dropout=0.5)
    (batch,) = served(task, pairs, training=True)
    for ids, types in zip(
        rows(batch, "inputs", "attention_mask"),
        rows(batch, "token_types", "attention_mask"),
        strict=True,
    ):
        first = [i for i, kind in zip(ids, types, strict=True) if kind % 2 == 0]
        second = [i for i, kind in zip(ids, types, strict=True) if kind % 2]
        assert [BPE.decode(first), BPE.decode(second)] == pairs[0]["input"]
        assert len(ids) > len(BPE.encode("when shall we three") + BPE.encode("meet again")) + 2


def test_bpe_dropout_of_seq2seq_keeps_texts_that_would_not_fit():
    texts = {"source": VERSE[:40], "target": VERSE[40:90]}
    task = Seq2Seq(bpe_dropout=0.9)
    (batch,) = served(task, [texts] * 6, training=True)
    usual = {name: [*BPE.encode(text), BPE.eos_id] for name, text in texts.items()}
    for name, mask, text in (("source", "source_mask", "source"), ("labels", None, "target")):
        for row in rows(batch, name, mask):
            assert BPE.decode(row) == texts[text]
            assert row[-1] == BPE.eos_id
            assert len(row) > len(usual[text])
    (batch,) = served(task, [texts] * 6, training=True, seq_len=len(usual["target"]))
    assert rows(batch, "labels", None) == [usual["target"]] * 6


def test_bpe_dropout_precedes_masking():
    task = MaskedLM(bpe_dropout=0.9).fit(None)
    (batch,) = served(task, [{"text": VERSE[:60]}] * 4, training=True)
    assert batch["labels"].shape == batch["inputs"].shape
    assert batch["inputs"].shape[1] > len(BPE.encode(VERSE[:60])) + 1


def test_bpe_dropout_needs_a_bpe_tokenizer():
    config = Classification(classes=[0, 1], input_kind="text", bpe_dropout=0.1)
    for kind, phrase in (("unigram", "this one is Unigram"), ("byte", "without merges")):
        tokenizer = Tokenizer.train(kind, [VERSE] * 3, 300)
        with pytest.raises(UserError, match=rf"bpe_dropout undoes merges .*{phrase}"):
            config.check(shape(output_dim=2, vocab_size=tokenizer.vocab_size), tokenizer)
    with pytest.raises(UserError, match="Unigram"):
        Seq2Seq(bpe_dropout=0.1).check(shape(), Tokenizer.train("unigram", [VERSE] * 3, 300))
    vectors = Classification(classes=[0, 1], input_kind="features", input_dim=2, bpe_dropout=0.1)
    with pytest.raises(UserError, match="bpe_dropout is for texts, and inputs are vectors"):
        vectors.check(shape(output_dim=2, input_dim=2), None)


def shape(**changes):
    from miniformer.config import TransformerConfig

    return TransformerConfig(**{"vocab_size": 400, "d_model": 16, "n_heads": 2, **changes})
