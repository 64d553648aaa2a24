"""Validation: its schedule and the best model."""

import io
import json
import types

import lightning as L
import pytest
from rich.console import Console
from torch.utils.data import DataLoader

from miniformer import TrainConfig
from miniformer.config import UserError
from miniformer.training.callbacks.budget import Budget
from miniformer.training.callbacks.validation import (
    BestModelCheckpoint,
    BudgetStopping,
    ValidationSchedule,
)
from miniformer.training.lit_module import MiniFormerLitModule
from miniformer.training.setup.prepare import prepare
from tests.kit import tiny_model
from tests.kit.training import bare_trainer, cpu_trainer, labeled_batches

pytestmark = [  # hints of Lightning about the small loaders of these tests
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:You defined a `validation_step`.*"),
]


@pytest.mark.parametrize(
    ("interval", "steps", "expected"), [(2, 7, [2, 4, 6, 7]), (None, 10, [2, 4, 6, 8, 10])]
)
def test_validation_interval_counts_optimizer_steps(interval, steps, expected):
    """5 batches an epoch, two a step: the third step of each epoch has one batch only."""
    budget, validated = Budget(max_steps=steps), []
    module = MiniFormerLitModule(tiny_model(), accumulate_grad_batches=2, budget=budget)

    class Note(L.Callback):
        def on_validation_end(self, trainer, module):
            validated.append(trainer.global_step)

    schedule = ValidationSchedule(budget, every_n_steps=interval, num_validations=5)
    lightning_trainer = cpu_trainer(
        max_epochs=-1, check_val_every_n_epoch=None, val_check_interval=1, num_sanity_val_steps=0,
        callbacks=[BudgetStopping(budget, print), schedule, Note()],
    )  # fmt: skip
    train_batches = labeled_batches([(2, 6)] * 5)
    val_batches = train_batches[:1]
    lightning_trainer.fit(
        module,
        DataLoader(train_batches, batch_size=None),
        DataLoader(val_batches, batch_size=None),
    )
    assert validated == expected


def test_validation_interval_follows_the_first_limit():
    class At(Budget):
        def progress(self, steps):
            return steps / 20  # the time limit is reached at step 20, before max_steps

    schedule = ValidationSchedule(At(max_steps=1000, max_seconds=5), num_validations=5)
    fake, module = bare_trainer(global_step=0), types.SimpleNamespace(between_steps=True)
    validated = []
    for fake.global_step in range(1, 21):
        schedule.on_train_batch_end(fake, module)
        if fake.val_check_batch == 1:
            validated.append(fake.global_step)
            schedule.on_validation_end(fake, None)
    assert validated == [4, 8, 12, 16, 20]


def test_best_model_is_never_one_with_a_nan_loss():
    saved = []
    checkpoint = BestModelCheckpoint(saved.append)
    fake = types.SimpleNamespace(global_step=3, callback_metrics={"val_loss": float("nan")})
    with pytest.raises(UserError, match="the validation loss is nan at step 3"):
        checkpoint.on_validation_end(fake, None)
    assert not saved


@pytest.mark.catches("best_model_has_the_smallest_accuracy")
@pytest.mark.parametrize(("maximize", "expected"), [(True, [1, 2, 4, 5, 6]), (False, [1, 3, 8])])
def test_best_model_is_that_of_the_metric(maximize, expected):
    """Of equal accuracies, the lower loss is better."""
    saved = []
    checkpoint = BestModelCheckpoint(
        lambda metrics: saved.append(metrics["step"]), monitor="val_accuracy", maximize=maximize
    )
    losses = [8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 4.0, 2.0, 4.0]
    accuracies = [0.5, 0.6, 0.4, 0.65, 0.7, 0.7, 0.7, 0.1, 0.1]
    for step, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True), 1):
        metrics = {"val_loss": loss, "val_accuracy": accuracy}
        fake = types.SimpleNamespace(global_step=step, callback_metrics=metrics)
        checkpoint.on_validation_end(fake, None)
    assert saved == expected


@pytest.mark.catches("validation_may_take_all_the_time")
def test_validation_takes_a_seventh_of_a_limited_time():
    """Of 100 validations, each as long as 4 steps, those that fit are done, and the last one."""

    class Clock(Budget):
        now = validating = 0.0

        @property
        def local_seconds(self):
            return self.now

        @property
        def validation_seconds(self):
            return self.validating

    budget = Clock(max_seconds=1000)
    schedule = ValidationSchedule(budget, num_validations=100, every_epoch=True)
    fake, module = bare_trainer(global_step=0), types.SimpleNamespace(between_steps=True)
    done = 0
    while budget.now < 1000:
        budget.now, budget.epochs = budget.now + 1, budget.now / 50
        schedule.on_train_batch_end(fake, module)
        if fake.val_check_batch == 1:
            done += 1
            budget.now, budget.validating = budget.now + 4, budget.validating + 4
            schedule.on_validation_end(fake, None)
    assert fake.val_check_batch == 1, "at the end of the run"
    assert 30 <= done <= 37
    reproducible = ValidationSchedule(Clock(max_steps=10), num_validations=10)
    reproducible.budget.validating = 1e9
    fake.global_step = 1
    reproducible.on_train_batch_end(fake, module)
    assert fake.val_check_batch == 1, "a run without a limit of time does not depend on the clock"


NO_LIMITS = {"cooldown": None, "max_seconds": None}
RECORDS = {
    "classification": ("accuracy", {"input": "a", "label": "b"}),
    "regression": ("rmse", {"input": "a", "value": 1}),
    "language_modeling": ("loss", {"text": "a"}),
    "masked_lm": ("loss", {"text": "a"}),
    "seq2seq": ("exact_match", {"source": "a", "target": "b"}),
}


@pytest.mark.catches("best_model_is_that_of_the_loss")
@pytest.mark.parametrize("task", RECORDS)
def test_checkpoint_metric_default_is_that_of_the_task(task, tmp_path):
    metric, record = RECORDS[task]
    second = {"classification": {"label": "c"}, "regression": {"value": 2}}
    path = tmp_path / "train.jsonl"
    path.write_text(
        json.dumps(record) + "\n" + json.dumps({**record, **second.get(task, {})}) + "\n"
    )
    settings = {"train_path": str(path), "val_path": str(path), "task": task}
    console = Console(file=io.StringIO())
    assert prepare(TrainConfig(**settings), console).metric == metric
    assert prepare(TrainConfig(**settings, checkpoint_metric="loss"), console).metric == "loss"


@pytest.mark.catches("validation_comes_within_a_step")
def test_validation_never_interrupts_gradient_accumulation():
    """A time limit may be due there; the validation would clear the gradients of the step."""
    clock = types.SimpleNamespace(progress=lambda step: clock.now, now=0.0, **NO_LIMITS)
    schedule = ValidationSchedule(clock)
    fake, module = bare_trainer(global_step=1), types.SimpleNamespace(between_steps=True)
    schedule.on_train_batch_end(fake, module)
    clock.now, module.between_steps = 0.5, False
    schedule.on_train_batch_end(fake, module)
    assert fake.val_check_batch != 1
    fake.global_step, module.between_steps = 2, True
    schedule.on_train_batch_end(fake, module)
    assert fake.val_check_batch == 1
