"""Settings of validation that follow from the data."""

import pytest
import scipy.stats

from miniformer import MiniFormerDataModule, TrainConfig
from miniformer.data.reading.records import InMemoryRecords
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.classification import Classification
from miniformer.tasks.language_modeling import LanguageModeling
from miniformer.tasks.regression import Regression
from miniformer.tasks.seq2seq import Seq2Seq
from miniformer.training.tuning.validation_defaults import (
    class_balance,
    default_num_validations,
    relative_validation_cost,
    resolve_checkpoint_metric,
    resolve_validation,
)
from tests.kit import VERSE

BYTES = Tokenizer.train("byte", [])


@pytest.mark.parametrize(
    ("epochs", "cost", "count", "reason"),
    [
        (None, 1.0, 10, "default"),
        (3, 0.03, 10, "default"), (10, 0.03, 10, "default"), (1, 0.0, 10, "default"),
        (10.5, 0.03, 11, "one an epoch"), (200, 0.03, 200, "one an epoch"),
        (10, 0.2, 8, "at most a seventh"), (100, 0.2, 83, "at most a seventh"),
        (12.5, 0.164, 12, "at most a seventh"),
        (10, 1.0, 3, "take more than a seventh"), (0.01, 5.0, 3, "take more than a seventh"),
    ],
)  # fmt: skip
def test_validations_are_one_an_epoch_within_a_seventh_of_the_time(epochs, cost, count, reason):
    result, given_reason = default_num_validations(epochs, cost)
    assert result == count
    assert reason in given_reason
    if epochs is not None and count > 3:
        assert count * cost / (count * cost + epochs) <= 0.143


def data_of(task, train, val):
    data = MiniFormerDataModule(train, val_path=val, task=task, tokenizer=BYTES, seq_len=64)
    data.setup()
    return data


@pytest.mark.catches("validation_costs_nothing")
def test_validation_cost_follows_from_the_data():
    """A third of the passes of training; generated targets cost more, up to their number."""
    texts = [{"text": VERSE[:40]}] * 30
    data = data_of("language_modeling", texts[:20], texts[:10])
    assert relative_validation_cost(data) == pytest.approx(1 / 6, rel=0.02)
    pairs = [{"source": VERSE[:20], "target": VERSE[:30]}] * 30
    costs = [
        relative_validation_cost(data_of(Seq2Seq(eval_generate_samples=n), pairs[:20], pairs[:10]))
        for n in (0, 5, 10, 500)
    ]
    assert costs[0] == pytest.approx(1 / 6, rel=0.02)
    assert costs[0] < costs[1] < costs[2] == costs[3]
    count, resolved = resolve_validation(TrainConfig("a.jsonl", max_epochs=12), data, 12)
    assert count == 12
    assert [str(setting) for setting in resolved] == [
        "val_check_interval: 12 validations (one an epoch)",
        "early_stopping_patience: 5 validations (or three tenths of those so far, if more)",
    ]


@pytest.mark.catches("reason_of_validations_is_always_that_of_epochs")
@pytest.mark.parametrize(
    ("limits", "epochs", "expected"),
    [
        ({"max_time": "1m"}, None, "10 validations, and one after each epoch (the time decides how "
         "many epochs there are)"),
        ({"max_steps": 5}, None, "10 validations (default)"),  # of a stream
        ({"max_steps": 5}, 5.0, "10 validations (default)"),
        ({"max_epochs": 2, "max_time": "1m"}, 2, "10 validations (default)"),
    ],
)  # fmt: skip
def test_reason_of_the_number_of_validations_is_true(limits, epochs, expected):
    """As in `ValidationSchedule`: after each epoch, too, if neither steps nor epochs are given."""
    data = data_of("language_modeling", [{"text": VERSE}] * 40, [{"text": VERSE}])
    data.streaming = epochs is None and "max_steps" in limits
    _, resolved = resolve_validation(TrainConfig("a.jsonl", **limits), data, epochs)
    assert str(resolved[0]) == f"val_check_interval: {expected}"


def labels(*counts):
    labels = [index for index, count in enumerate(counts) for _ in range(count)]
    return InMemoryRecords([{"label": label} for label in labels], {"label": lambda value: None})


@pytest.mark.parametrize("counts", [(5, 5), (90, 10), (7, 2, 1), (1, 1, 1, 97), (10, 10, 10, 1)])
def test_class_balance_is_scipys_entropy(counts):
    expected = scipy.stats.entropy(counts) / scipy.stats.entropy([1] * len(counts))
    assert class_balance(labels(*counts)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("counts", "metric"),
    [((50, 50), "accuracy"), ((75, 25), "accuracy"), ((80, 20), "macro_f1"),
     ((35, 25, 25, 14, 1), "accuracy"), ((90, 5, 5), "macro_f1")],
)  # fmt: skip
def test_checkpoint_metric_of_unequal_classes_is_macro_f1(counts, metric):
    assert resolve_checkpoint_metric(Classification(), labels(*counts)).value == metric


TARGETS = {
    "a word": (["cat", "dog"] * 20, "exact_match"),
    "commands": (["turn left walk run"] * 40, "exact_match"),
    "sentences": ([f"{i} the cat {3 * i} sat on {i}x" for i in range(40)], "bleu"),
    "no spaces": (
        [f"{i}\u732b\u304c\u30de\u30c3\u30c8\u306e\u4e0a" * 4 for i in range(40)],
        "chrf",
    ),
}


@pytest.mark.parametrize("case", TARGETS)
def test_checkpoint_metric_of_seq2seq_follows_from_the_targets(case, monkeypatch):
    targets, metric = TARGETS[case]
    schema = Seq2Seq().schema
    records = InMemoryRecords([{"source": "a", "target": text} for text in targets], schema)
    assert resolve_checkpoint_metric(Seq2Seq(), records).value == metric
    assert resolve_checkpoint_metric(Seq2Seq(eval_generate_samples=0), records).value == "loss"
    module = "miniformer.training.tuning.validation_defaults"
    monkeypatch.setattr(f"{module}.has_sacrebleu", lambda: False)
    setting = resolve_checkpoint_metric(Seq2Seq(), records)
    assert setting.value == (metric if metric == "exact_match" else "loss")
    assert metric == "exact_match" or "pip install" in setting.reason


def test_checkpoint_metric_of_other_tasks():
    pairs, vectors = (Regression(input_kind=kind) for kind in ("pair", "features"))
    assert resolve_checkpoint_metric(pairs, None).value == "pearson"
    assert resolve_checkpoint_metric(vectors, None).value == "rmse"
    assert resolve_checkpoint_metric(LanguageModeling(), None).value == "loss"
    assert resolve_checkpoint_metric(Classification(), None).value == "accuracy"
