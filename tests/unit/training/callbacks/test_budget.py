"""Budgets of epochs, steps and time."""

from miniformer.training.callbacks.budget import Budget
from tests.kit.clock import Clock


def test_budget_ends_with_the_first_limit(monkeypatch):
    assert Budget(max_steps=10).progress(5) == 0.5
    assert Budget(max_steps=10).progress(20) == 1.0
    assert Budget().progress(5) == 0.0
    clock = Clock().install(monkeypatch)
    budget = Budget(max_steps=1000, max_seconds=8.0)
    budget.start()
    clock.now += 2.0
    assert budget.progress(1) == 0.25
    assert budget.progress(500) == 0.5
    clock.now += 7.0
    assert budget.progress(1) == 1.0


def test_budget_starts_unspent(monkeypatch):
    Clock().install(monkeypatch)
    budget = Budget(max_epochs=2)
    budget.start()
    assert budget.state_dict() == {"epochs": 0.0, "seconds": 0.0, "validation_seconds": 0.0}
    assert budget.progress(9, epochs=1.0) == 0.5
    budget.epochs = 1.5
    assert budget.progress(9) == 0.75
