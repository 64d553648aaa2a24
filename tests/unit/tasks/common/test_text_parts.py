"""Texts with parts that are not learned, against loops over characters and single records."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from miniformer import MiniFormerDataModule
from miniformer.config import ConfigError, UserError
from miniformer.data.batching.chunks import _encode_records
from miniformer.data.reading.records import JSONLinesDataset, RecordError, as_records
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.common.text_parts import learned_text, text_prompt
from miniformer.tasks.language_modeling import LanguageModeling
from miniformer.tasks.prefix_language_modeling import PrefixLanguageModeling
from tests.kit import tiny_model

CHARACTERS = Tokenizer.train("char", ["abcdefgh"])
PART = st.fixed_dictionaries(
    {"text": st.text("abcdefgh", max_size=4)}, optional={"learn": st.booleans()}
)
TEXTS = st.one_of(st.text("abcdefgh", max_size=6), st.lists(PART, min_size=1, max_size=4))


def expected_pairs(text):
    """Tokens of a text, each with its learned label or None, by a loop over characters."""
    parts = [(text, True)] if isinstance(text, str) else [
        (part["text"], part.get("learn", True)) for part in text
    ]  # fmt: skip
    marked = [(char, learn) for part, learn in parts for char in part]
    ids = CHARACTERS.encode_batch(["".join(char for char, _ in marked)])[0]
    tokens = [CHARACTERS.bos_id, *ids]
    labels = [*ids, CHARACTERS.bos_id]
    flags = [learn for _, learn in marked] + [parts[-1][1]]
    return [(t, n if on else None) for t, n, on in zip(tokens, labels, flags, strict=True)]


def served(records, packing, seq_len, training):
    task = LanguageModeling(packing=packing)
    batcher = task.batcher(
        CHARACTERS, seq_len=seq_len, batch_size=3, batch_tokens=None, training=training
    )
    store = _encode_records(iter(records), lambda batch: task.encode(batch, CHARACTERS, seq_len))
    rng = np.random.default_rng(0) if training else None
    return [batcher.collate(store, plan) for plan in batcher.plan_batches(store, rng)]


@pytest.mark.catches("packing_loses_the_mask", "mask_is_one_token_late")
@given(st.lists(TEXTS, min_size=1, max_size=5), st.sampled_from(["wrapped", "best_fit"]))
def test_mask_of_parts_survives_packing(texts, packing):
    batches = served([{"text": text} for text in texts], packing, 5, training=False)
    pairs = []
    for batch in batches:
        ids, labels = batch["input_ids"], batch["labels"]
        segments = batch.get("segment_ids", torch.ones_like(ids))
        for token, label in zip(ids[segments > 0], labels[segments > 0], strict=True):
            pairs.append((int(token), None if label == -100 else int(label)))
    expected = [pair for text in texts for pair in expected_pairs(text)]
    if packing == "wrapped":
        assert pairs == expected
    else:
        assert sorted(map(str, pairs)) == sorted(map(str, expected))
    learned = sum(len(learned_text(text).encode()) for text in texts)
    if any(label is not None for _, label in expected):
        assert abs(sum(batch["bytes"] for batch in batches) - learned) < 1e-6


@pytest.mark.parametrize(("packing", "seq_len"), [("wrapped", 17), ("best_fit", 8)])
def test_loss_of_packed_parts_is_that_of_single_texts(packing, seq_len):
    """The model sees prompts and is trained on completions only."""
    texts = ["abc", [{"text": "ab", "learn": False}, {"text": "cde"}], "h",
             [{"text": "ab"}, {"text": "fg", "learn": False}]]  # fmt: skip
    model, task = tiny_model(vocab_size=CHARACTERS.vocab_size), LanguageModeling(packing=packing)
    loss = count = 0.0
    for batch in served([{"text": text} for text in texts], packing, seq_len, training=False):
        batch_loss, batch_count = task.loss(model, batch)
        loss, count = loss + float(batch_loss.detach()), count + float(batch_count)
    expected = expected_count = 0.0
    for text in texts:
        tokens, labels = zip(*expected_pairs(text), strict=True)
        logits = model(torch.tensor([tokens]))[0]
        for row, label in zip(logits, labels, strict=True):
            if label is not None:
                expected += float(F.cross_entropy(row[None], torch.tensor([label])).detach())
                expected_count += 1
    assert count == expected_count
    assert loss == pytest.approx(expected, rel=1e-5)


def test_batch_without_learned_tokens_has_no_loss():
    (batch,) = served([{"text": [{"text": "abc", "learn": False}]}], "wrapped", 4, training=True)
    model = tiny_model(vocab_size=CHARACTERS.vocab_size)
    loss, count = LanguageModeling().loss(model, batch)
    assert (float(loss.detach()), float(count)) == (0.0, 0.0)
    records = torch.zeros(batch["labels"].shape, dtype=torch.int64)
    stats = LanguageModeling().record_step(model, {**batch, "records": records})
    assert stats["token_losses"].shape == stats["token_records"].shape == (0,)


@pytest.mark.catches("sources_of_a_field_are_not_checked")
def test_errors_of_prompt_and_completion_name_them(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"prompt": "ab", "completion": "cd"}\n{"prompt": "a", "completion": 3}\n')
    expected = r"train.jsonl:2: 'completion' must be a string or a list of messages, not an integer"
    records = as_records(str(path), LanguageModeling().schema)
    with pytest.raises(UserError, match=expected):
        list(records)


def test_prompt_and_completion_are_parts(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"prompt": "ab", "completion": "cd"}\n{"text": "e", "prompt": "f"}\n')
    first, second = JSONLinesDataset(path, LanguageModeling().schema)
    assert first["text"] == [{"text": "ab", "learn": False}, {"text": "cd"}]
    assert (text_prompt(first["text"]), learned_text(first["text"])) == ("ab", "cd")
    assert second["text"] == "e", "a text has no prompt of its own"
    assert list(LanguageModeling().texts(first)) == ["ab", "cd"]
    assert LanguageModeling().sample_prompts([first]) == ["ab"]
    assert LanguageModeling().is_empty({"text": [{"text": "a", "learn": False}, {"text": " "}]})


def test_conversation_without_learned_turns_is_empty_unless_all_is_learned():
    question = {"role": "user", "content": "a"}
    answer = {"role": "assistant", "content": "b"}
    assert not LanguageModeling().is_empty({"text": [question, answer]})
    record = {"text": [question, {**answer, "learn": False}]}
    assert LanguageModeling().is_empty(record)
    assert not LanguageModeling(train_on="all").is_empty(record)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"text": 3}', "'text' must be a string or a list of parts, not an integer"),
        ('{"text": []}', "'text' is an empty list; it needs a part"),
        ('{"text": ["a"]}', "'text' part 1 is a string; each is an object such as"),
        ('{"text": [{"text": "a"}, {"learn": true}]}', "'text' part 2 has nothing as text"),
        ('{"text": [{"text": "a", "learn": 0}]}', "'text' part 1 has an integer as learn"),
        ('{"text": [{"text": "a", "lern": false}]}', "'text' part 1 has 'lern'; a part has only"),
        (
            '{"prompt": 1, "completion": "a"}',
            "'prompt' must be a string or a list of messages, not an integer",
        ),
        ('{"prompt": "a"}', "the record has no 'text'"),
        ('{"text": [{"text": "\\ud800"}]}', "half of a surrogate pair"),
    ],
)
def test_invalid_parts_are_errors_with_file_and_line(tmp_path, line, problem):
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n' + line + "\n")
    with pytest.raises(RecordError) as error:
        list(JSONLinesDataset(tmp_path / "t.jsonl", LanguageModeling().schema))
    assert str(error.value).startswith(
        f"{tmp_path}/t.jsonl:2: {problem}"[: len(str(tmp_path)) + 12]
    )
    assert problem in str(error.value)


def test_parts_and_whole_packing_are_refused_where_they_have_no_effect(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": [{"text": "a"}]}\n')
    with pytest.raises(RecordError, match="'text' must be a string, not a list"):
        list(JSONLinesDataset(tmp_path / "t.jsonl", PrefixLanguageModeling().schema))
    with pytest.raises(ConfigError, match="packing=best_fit is for causal models"):
        PrefixLanguageModeling(packing="best_fit")
    (tmp_path / "t.txt").write_text("a line of text\n" * 9000)
    data = MiniFormerDataModule(
        str(tmp_path / "t.txt"), task=LanguageModeling(packing="best_fit"),
        tokenizer=Tokenizer.train("byte", []),
    )  # fmt: skip
    with pytest.raises(UserError, match="packing=best_fit is for records, and the data is running"):
        data.setup()


def test_tables_of_typed_columns_have_prompts_and_completions(tmp_path):
    table = pa.table({"prompt": ["ab", "c"], "completion": ["cd", "e"]})
    pq.write_table(table, tmp_path / "t.parquet")
    expected = [{"text": "ab", "learn": False}, {"text": "cd"}]
    for source in (str(tmp_path / "t.parquet"), table):
        assert as_records(source, LanguageModeling().schema)[0]["text"] == expected
    with pytest.raises(UserError, match="there is no column 'text'; the columns are 'prompt'"):
        as_records(table.select(["prompt"]), LanguageModeling().schema)
