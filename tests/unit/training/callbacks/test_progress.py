"""The progress line of a run."""

import pytest

from miniformer.training.callbacks.budget import Budget
from tests.kit.clock import Clock


@pytest.mark.catches("time_left_is_time_gone")
def test_progress_estimates_the_remaining_time(monkeypatch):
    clock = Clock().install(monkeypatch)
    budget = Budget(max_steps=10)
    budget.start(seconds=30.0)  # of a resumed run
    assert budget.remaining_seconds(0.0) == 0.0
    clock.now += 10.0
    assert budget.remaining_seconds(budget.progress(4)) == pytest.approx(60.0)
    assert budget.remaining_seconds(budget.progress(10)) == 0.0
