"""Estimates of a run before it starts."""

import json

import pytest
from rich.console import Console

from miniformer.config import UserError
from miniformer.train_config import TrainConfig
from miniformer.training.setup import estimate
from miniformer.training.setup.prepare import prepare

SMALL = {"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 32}


@pytest.fixture
def prepared(tmp_path):
    """Function that prepares a run on twelve records, with these settings."""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"input": f"{n % 2} {n}", "label": n % 2}) + "\n"
                            for n in range(12)))  # fmt: skip

    def prepare_run(**values):
        config = TrainConfig(
            train_path=str(path), task="classification", tokenizer="byte", model_config=SMALL,
            batch_size=4, **{"precision": "float32", **values},
        )  # fmt: skip
        return prepare(config, Console(quiet=True))

    return prepare_run


class Clock:
    """Advances by half a second a call."""

    now = 0.0

    def __call__(self):
        self.now += 0.5
        return self.now


@pytest.mark.catches("estimate_ignores_epochs")
@pytest.mark.parametrize(
    ("values", "steps"),
    [
        ({"max_epochs": 5}, lambda batches: 5 * batches),
        ({"max_epochs": 5, "accumulate_grad_batches": 3}, lambda batches: 5 * -(-batches // 3)),
        ({"max_steps": 7}, lambda batches: 7),
        ({"max_steps": 7, "max_time": "2s"}, lambda batches: 7),
        ({"max_time": "90s"}, lambda batches: None),
    ],
)
def test_estimate_is_steps_times_their_seconds(prepared, values, steps):
    run = prepared(val_share=0.0, **values)
    result = estimate.estimate_run(run, clock=Clock())
    assert result.steps == steps(len(list(run.data.train_dataloader())))
    # The clock is asked once before each step but the first, and at the end.
    assert 0.5 <= result.step_seconds <= 1.0
    expected = 90 if result.steps is None else result.steps * result.step_seconds
    assert result.seconds == pytest.approx(min(expected, run.config.max_seconds or expected))
    assert result.memory_bytes > 100e6


@pytest.mark.catches("estimate_leaves_validation_out")
def test_estimate_includes_validation(prepared, tmp_path):
    run = prepared(max_steps=6, val_path=str(tmp_path / "a.jsonl"), val_check_interval=2)
    result = estimate.estimate_run(run, clock=Clock())
    batches = len(list(run.data.val_dataloader()))
    # Three validations; a batch takes a third of a step.
    assert result.seconds == pytest.approx((6 + 3 * batches / 3) * result.step_seconds)


def test_dry_run_does_not_consume_standard_input():
    config = TrainConfig(train_path="-", streaming=True, max_steps=1)
    with pytest.raises(UserError, match="dry_run would consume standard input"):
        estimate.dry_run(config, Console(quiet=True))
