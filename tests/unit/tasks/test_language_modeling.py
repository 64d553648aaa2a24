import math

import pytest
import torch

from miniformer.config import UserError
from miniformer.data.reading.records import as_records
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.language_modeling import LanguageModeling
from tests.kit import tiny_config, tiny_model


def test_lm_loss_is_the_sum_over_labeled_tokens():
    model = tiny_model()
    ids = torch.randint(0, 31, (2, 6))
    labels = torch.randint(0, 31, (2, 6))
    labels[0, 4:] = -100
    segments = (labels != -100).long()
    total, count = LanguageModeling().loss(
        model, {"input_ids": ids, "labels": labels, "segment_ids": segments}
    )
    log_probabilities = model(ids, segment_ids=segments).log_softmax(-1)
    by_hand = -sum(
        log_probabilities[b, t, labels[b, t]]
        for b in range(2)
        for t in range(6)
        if labels[b, t] != -100
    )
    assert count == 10
    torch.testing.assert_close(total, by_hand)


@pytest.mark.catches("loss_counts_unlabelled_positions")
def test_lm_loss_ignores_labels_without_segments():
    model = tiny_model()
    ids = torch.randint(0, 31, (2, 6))
    labels = torch.randint(0, 31, (2, 6))
    labels[:, 3:] = -100
    total, count = LanguageModeling().loss(model, {"input_ids": ids, "labels": labels})
    short, _ = LanguageModeling().loss(model, {"input_ids": ids[:, :3], "labels": labels[:, :3]})
    assert count == 6
    torch.testing.assert_close(total, short)


def test_lm_inputs_do_not_contain_the_labels():
    """On random tokens a loss below ln(V) would mean that labels leak."""
    torch.manual_seed(0)
    model = tiny_model(vocab_size=8, n_layers=1).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(150):
        ids = torch.randint(0, 8, (16, 17))
        total, count = LanguageModeling().loss(
            model, {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}
        )
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
    ids = torch.randint(0, 8, (200, 17))
    total, count = LanguageModeling().loss(model, {"input_ids": ids[:, :-1], "labels": ids[:, 1:]})
    assert math.log(8) - 0.02 < total / count < math.log(8) + 0.2


@pytest.mark.catches("mean_is_over_batches")
def test_lm_metrics():
    batch_stats = [
        {"loss": 15.0, "count": 7, "bytes": 30},
        {"loss": 5.0, "count": 3, "bytes": 10.0},
    ]
    assert LanguageModeling().compute_metrics(batch_stats) == pytest.approx(
        {"loss": 2.0, "perplexity": math.exp(2), "bits_per_byte": 20 / math.log(2) / 40}
    )
    unknown = [{"loss": 1.0, "count": 1, "bytes": 0.0}]
    assert "bits_per_byte" not in LanguageModeling().compute_metrics(unknown)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"causal": False}, "causal must be true for language modeling"),
        ({"input_dim": 3}, "input_dim must be null for language modeling, not 3"),
        ({"output_dim": 3}, "output_dim must be null"),
        ({"vocab_size": 257}, "vocab_size=257 is smaller than the tokenizer's 258 ids"),
    ],
)
def test_lm_rejects_unsuitable_models(changes, message):
    tokenizer = Tokenizer.train("byte", [])
    config = tiny_config(**{"vocab_size": 300, **changes})
    with pytest.raises(UserError, match=message):
        LanguageModeling().check(config, tokenizer)


def test_lm_block_that_continues_a_document_has_no_leading_eos():
    tokenizer = Tokenizer.train("byte", [])
    records = [{"text": "a"}, {"text": "b", "continues": True}, {"text": "c"}]
    ids = [row["ids"] for row in LanguageModeling().encode(records, tokenizer, 8)]
    boundary = tokenizer.eos_id
    assert [row[0] == boundary for row in ids] == [True, False, True]
    assert [row[-1] for row in ids] == [tokenizer.encode(text)[0] for text in "abc"]


@pytest.mark.catches("a_column_of_labels_is_ignored_in_silence")
def test_record_warnings_name_a_column_of_labels():
    task = LanguageModeling()
    labeled = [{"text": "a good film", "label": "good"}, {"text": "a dull one", "label": "bad"}]
    (line,) = task.record_warnings(as_records(labeled, task.schema))
    assert line == (
        "note: language_modeling does not read the column label; to predict it, set the task, "
        "such as --task classification --input_field text"
    )
    tagged = [{"text": "a film", "tokens": ["a", "film"], "tags": ["DET", "NOUN"]}]
    (line,) = task.record_warnings(as_records(tagged, task.schema))
    assert "the column tags; to predict it" in line
    assert line.endswith("--task token_classification")
    plain = [{"text": "a good film", "id": 1}]
    assert list(task.record_warnings(as_records(plain, task.schema))) == []
