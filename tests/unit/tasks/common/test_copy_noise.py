"""Copy noise of seq2seq, against plain Python and by properties."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miniformer.config import UserError
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.common.copy_noise import (
    SHARED_COLUMN,
    exchange_piece,
    find_longest_shared,
    with_copy_noise,
)
from miniformer.tasks.seq2seq import Seq2Seq

IDS = st.lists(st.integers(0, 3), max_size=9)


def decode(ids):
    return "".join(map(chr, ids))


def encode(text):
    return np.array(list(map(ord, text)), dtype=np.uint16)


def an_example(source, target):
    source, labels = encode(source), encode(target)
    return {"source": source, "labels": labels, SHARED_COLUMN: find_longest_shared(source, labels)}


@settings(max_examples=200, deadline=None)
@given(IDS, IDS)
def test_find_longest_shared_equals_exhaustive_search(source, target):
    parts = [source[i:j] for i in range(len(source)) for j in range(i + 1, len(source) + 1)]
    shared = [part for part in parts
              if any(target[k : k + len(part)] == part for k in range(len(target)))]  # fmt: skip
    start, target_start, length = find_longest_shared(
        *(np.array(ids, dtype=np.int64) for ids in (source, target))
    )
    assert length == max(map(len, shared), default=0)
    assert source[start : start + length] == target[target_start : target_start + length]


@pytest.mark.catches("copy_noise_changes_the_source_alone")
@settings(max_examples=100, deadline=None)
@given(st.integers(0, 999))
def test_exchange_piece_changes_source_and_target_alike(seed):
    example = an_example("PL;Ciprus+", "aCiprusok")
    changed = exchange_piece(example, encode("haltam"), np.random.default_rng(seed))
    source, target = decode(changed["source"]), decode(changed["labels"])
    assert source.startswith("PL;")
    assert source.endswith("+")
    stem = source[3:-1]
    assert target == f"a{stem}ok"
    # The rest of the stem is a beginning and an end of the old one.
    cuts = {("Ciprus"[:i], "Ciprus"[j:]) for i in range(7) for j in range(i + 1, 7)}
    assert any(
        stem.startswith(begin) and stem.endswith(end) and len(begin) + len(end) < len(stem)
        and stem[len(begin) : len(stem) - len(end)] in "haltam"
        for begin, end in cuts
    )  # fmt: skip
    assert decode(example["source"]) == "PL;Ciprus+"  # the data stays as it is


def collated(examples, rng):
    return [(decode(example["source"]), decode(example["labels"])) for example in examples]


@pytest.mark.catches("copy_noise_changes_every_example", "copy_noise_changes_short_parts")
def test_copy_noise_changes_examples_at_its_rate():
    examples = [an_example("inflect", "inflected"), an_example("xyz", "yzy")] * 500
    collate = with_copy_noise(collated, 0.3, max_length=30)
    batch = collate(examples, np.random.default_rng(0))
    changes = [source != "inflect" for source, _ in batch[::2]]
    # An exchanged piece may equal the old one.
    assert 0.2 < np.mean(changes) < 0.36
    assert set(batch[1::2]) == {("xyz", "yzy")}
    assert collate(examples, None) == collated(examples, None)
    assert collate(examples, np.random.default_rng(0)) == batch


def test_copy_noise_keeps_the_maximum_length():
    examples = [an_example("inflect", "inflected")] * 200
    batch = with_copy_noise(collated, 1.0, max_length=9)(examples, np.random.default_rng(0))
    assert max(len(target) for _, target in batch) == 9
    assert len(set(batch)) > 20


@pytest.mark.catches("copy_noise_reaches_evaluation")
def test_seq2seq_changes_training_batches_alone():
    records = [{"source": f"V {word}", "target": f"{word}ed"} for word in ("walk", "laugh", "jump")]
    tokenizer = Tokenizer.train("char", [text for record in records for text in record.values()])
    task = Seq2Seq(copy_noise=1.0)
    examples = task.encode(records, tokenizer, 32)
    rng = np.random.default_rng(0)
    training = task.collate_fn(tokenizer, seq_len=32, training=True)(examples, rng)
    sources = [tokenizer.decode(row.tolist()) for row in training["source"]]
    targets = [tokenizer.decode(row[row >= 0].tolist()) for row in training["labels"]]
    plain = task.collate_fn(tokenizer, seq_len=32, training=False)(examples, rng)
    references = [(record["source"], record["target"]) for record in records]
    assert [tokenizer.decode(row.tolist()) for row in plain["source"]] == [s for s, _ in references]
    assert list(zip(sources, targets, strict=True)) != references
    for source, target in zip(sources, targets, strict=True):
        assert target == source.removeprefix("V ") + "ed"


def test_separate_tokenizers_are_refused():
    tokenizer = Tokenizer.train("char", ["walk"])
    tokenizer.separate_source_tokenizer = Tokenizer.train("char", ["walk"])
    task = Seq2Seq(copy_noise=0.5)
    config = task.model_config({"d_model": 8, "n_heads": 2, "n_layers": 1}, tokenizer)
    from miniformer import TransformerConfig

    with pytest.raises(UserError, match="copy_noise needs one tokenizer for sources and targets"):
        task.check(TransformerConfig.from_dict(config), tokenizer)
    dataclasses.replace(task, copy_noise=0.0).check(TransformerConfig.from_dict(config), tokenizer)
