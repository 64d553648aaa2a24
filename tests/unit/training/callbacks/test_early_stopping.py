"""Early stopping: its patience, and the phase that anneals the best model."""

import json
import math
import types

import pytest

from miniformer.training.callbacks.budget import Budget, Cooldown
from miniformer.training.callbacks.early_stopping import EarlyStopping
from miniformer.training.callbacks.validation import BestModelCheckpoint, ValidationSchedule
from miniformer.training.lit_module import MiniFormerLitModule
from tests.kit import tiny_model
from tests.kit.training import bare_trainer


def stop_of(losses, accuracies=None, **options):
    """Runs a validation each 10 steps; returns the callback and its step of stopping."""
    budget, messages = Budget(max_steps=10_000), []
    options = {"monitor": "val_accuracy" if accuracies else "val_loss", **options}
    callback = EarlyStopping(budget, log_fn=messages.append, **options)
    continue_with(callback, losses, accuracies)
    assert (callback.stop_step is None) == (not messages)
    return callback, messages


def continue_with(callback, losses, accuracies=None):
    fake = types.SimpleNamespace(state=types.SimpleNamespace(fn="fit"), should_stop=False)
    module = types.SimpleNamespace(current_lr=0.5, lr=2.0)
    start = callback.num_validations
    for index, loss in enumerate(losses):
        metrics = {"val_loss": loss}
        if accuracies:
            metrics["val_accuracy"] = accuracies[index]
        fake.global_step, fake.callback_metrics = 10 * (start + index + 1), metrics
        callback.on_validation_end(fake, module)
        if callback.stop_step is not None:
            break
    return fake.should_stop


@pytest.mark.parametrize("best", [1, 3, 12, 40])
def test_patience_default_is_five_or_three_tenths_of_the_validations(best):
    """After the best of `best` validations, as many as the rule says, counted plainly."""
    losses = [*(float(100 - i) for i in range(best)), *[1000.0] * 100]
    expected = next(n for n in range(best + 1, 200) if n - best >= max(5, 0.3 * n))
    callback, _ = stop_of(losses)
    assert callback.stop_step == 10 * expected
    assert callback.best_step == 10 * best


@pytest.mark.catches("early_stopping_ignores_the_loss")
def test_improvement_is_that_of_the_metric_or_of_the_loss():
    flat, falling = [0.5] * 10, [10.0 - i for i in range(10)]
    assert stop_of(falling, flat, maximize=True, patience=3)[0].stop_step is None
    rising_accuracy = [0.1 * i for i in range(10)]
    callback, _ = stop_of(falling[::-1], rising_accuracy, maximize=True, patience=3)
    assert callback.stop_step is None
    assert callback.best_step == 100
    callback, _ = stop_of(falling[::-1], flat, maximize=True, patience=3)
    assert (callback.stop_step, callback.best_step) == (40, 10)


def test_best_step_is_that_of_the_saved_model_among_equal_metrics():
    """Compared with `BestModelCheckpoint`: a tie is broken by the loss of the best, not of all."""
    losses, accuracies = [0.5, 0.4, 0.45, 0.6, 0.45], [0.9, 0.8, 0.9, 0.9, 0.9]
    callback, _ = stop_of(losses, accuracies, maximize=True, patience=9)
    saved = BestModelCheckpoint(lambda metrics: None, monitor="val_accuracy", maximize=True)
    for number, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True), 1):
        saved.update({"val_loss": loss, "val_accuracy": accuracy, "step": 10 * number})
    assert callback.best_step == saved.best_metrics["step"] == 30


def test_patience_of_zero_never_stops():
    assert stop_of([1.0, *[9.0] * 300], patience=0)[0].stop_step is None


def test_run_ends_at_once_without_a_schedule():
    budget = Budget(max_steps=1000)
    callback = EarlyStopping(budget, patience=2, cooldown=False, log_fn=lambda text: None)
    assert continue_with(callback, [1.0, 2.0, 3.0, 4.0])
    assert (callback.stop_step, budget.cooldown) == (30, None)
    resumed = EarlyStopping(budget, patience=2, cooldown=False)
    resumed.load_state_dict(json.loads(json.dumps(callback.state_dict())))
    fake = types.SimpleNamespace(should_stop=False)
    resumed.on_train_start(fake, None)
    assert fake.should_stop, "a resumed run has ended already"


@pytest.mark.parametrize("restore", [True, False])
def test_cooldown_starts_from_the_best_model(restore):
    restored = []
    options = {"restore_best": lambda: restored.append(1)} if restore else {}
    losses = [*(100.0 - i for i in range(8)), *[200.0] * 9]
    callback, messages = stop_of(losses, patience=4, **options)
    start = 80 if restore else 120
    cooldown = callback.budget.cooldown
    assert cooldown == Cooldown(120, start // 4, 0.012, 0.25)
    assert len(restored) == restore
    assert f"in {start // 4} steps from the model of step {start}" in messages[0]


@pytest.mark.parametrize(("epochs", "steps"), [(0.0, 20), (0.5, 80), (2.0, 60), (4.0, 30)])
def test_cooldown_is_an_epoch_or_a_quarter_of_the_steps_to_the_best(epochs, steps):
    """The best model is that of step 80, the stop at step 120: an epoch has 240, 60 or 30 steps."""
    budget = Budget(max_steps=10_000)
    budget.epochs = epochs
    callback = EarlyStopping(budget, lambda: None, patience=4, log_fn=lambda text: None)
    continue_with(callback, [*(100.0 - i for i in range(8)), *[200.0] * 9])
    assert budget.cooldown.num_steps == steps


@pytest.mark.catches("stopped_run_stays_at_its_learning_rate")
def test_cooldown_anneals_the_learning_rate_to_zero():
    budget = Budget(max_steps=1000)
    module = MiniFormerLitModule(tiny_model(), budget=budget, lr=2.0)
    before = module._lr_factor(100)
    budget.cooldown = Cooldown(101, 20, budget.progress(101), before)
    factors = [module._lr_factor(step) for step in range(101, 122)]
    assert factors == pytest.approx([before * (1 - i / 20) for i in range(21)])
    progress = [budget.progress(step) for step in range(101, 122)]
    assert progress == sorted(progress)
    assert (progress[0], progress[-1]) == (0.101, 1.0)


def test_cooldown_has_validations_of_its_own():
    budget = Budget(max_steps=1000)
    schedule = ValidationSchedule(budget, num_validations=10)
    fake, module = bare_trainer(global_step=0), types.SimpleNamespace(between_steps=True)
    validated = []
    for fake.global_step in range(1, 261):
        schedule.on_train_batch_end(fake, module)
        if fake.val_check_batch == 1:
            validated.append(fake.global_step)
            schedule.on_validation_end(fake, None)
        if fake.global_step == 210:
            budget.cooldown = Cooldown(210, 50, budget.progress(210), 1.0)
            state = json.loads(json.dumps(schedule.state_dict()))
            schedule = ValidationSchedule(budget, num_validations=10)
            schedule.load_state_dict(state)
    assert validated == [100, 200, 220, 230, 240, 250, 260]


@pytest.mark.catches("resumed_run_forgets_its_patience")
@pytest.mark.parametrize("first", range(1, 9))
def test_resume_restores_the_state_of_early_stopping(first):
    """A run that is resumed after any validation stops where the whole run does."""
    losses = [5.0, 4.0, 4.5, 3.0, 3.5, 3.2, 3.3, 3.1, 3.6, 3.7]
    uninterrupted, _ = stop_of(losses, patience=4)
    before, _ = stop_of(losses[:first], patience=4)
    after = EarlyStopping(Budget(max_steps=10_000), patience=4, log_fn=lambda text: None)
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    continue_with(after, losses[first:] if before.stop_step is None else [])
    assert after.stop_step == uninterrupted.stop_step == 80
    assert after.budget.cooldown == uninterrupted.budget.cooldown
    assert math.isclose(after.budget.cooldown.start_progress, 0.008)


def test_resume_without_patience_continues_a_stopped_run():
    stopped, _ = stop_of([1.0, *[2.0] * 9], patience=4)
    assert stopped.budget.cooldown is not None
    resumed = EarlyStopping(Budget(max_steps=10_000), patience=0)
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    assert (resumed.budget.cooldown, resumed.stop_step) == (None, None)
