"""Settings of validation that follow from the data."""

import pytest

from miniformer import MiniFormerDataModule
from miniformer.config.train_settings import EvaluationSettings
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.seq2seq import Seq2Seq
from miniformer.training.tuning.validation_defaults import (
    default_num_validations,
    relative_validation_cost,
    resolve_validation,
)
from tests.kit import VERSE

BYTES = Tokenizer.train("byte", [])


@pytest.mark.parametrize(
    ("epochs", "cost", "count"),
    [
        (None, 1.0, 10),  # unknown: the schedule validates after each epoch, too
        (3, 0.03, 10), (10, 0.03, 10), (10.5, 0.03, 11), (200, 0.03, 200),
        (10, 0.2, 6), (100, 0.2, 68), (10, 1.0, 3), (1, 0.0, 10), (0.01, 5.0, 3),
    ],
)  # fmt: skip
def test_validations_are_one_an_epoch_within_an_eighth_of_the_time(epochs, cost, count):
    assert default_num_validations(epochs, cost) == count
    if epochs is not None and count > 3:
        assert count * cost / (count * cost + epochs) <= 0.125


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
    count, resolved = resolve_validation(EvaluationSettings(), data, 10)
    assert count == 8
    assert [str(setting) for setting in resolved] == [
        "val_check_interval: 8 validations (to take at most an eighth of the time)",
        "early_stopping_patience: 5 validations (or three tenths of those so far, if more)",
    ]
