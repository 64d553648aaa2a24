"""The progress line of a run."""

import io
import re
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from miniformer.training.callbacks.budget import Budget
from miniformer.training.callbacks.progress import ProgressCallback
from miniformer.training.callbacks.progress_line import (
    TrainingStatus,
    fit_line,
    format_clock,
    format_status,
)
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


@pytest.mark.catches("time_left_counts_earlier_processes")
def test_time_left_of_a_resumed_run_is_that_of_its_own_speed(monkeypatch):
    clock = Clock().install(monkeypatch)
    budget = Budget(max_steps=100)
    budget.start(seconds=3000.0)  # a slow start: 3,000 s for 10 steps
    budget.measure_pace(budget.progress(10))
    assert budget.remaining_seconds(budget.progress(10)) == 0.0, "unknown"
    clock.now += 20.0
    assert budget.remaining_seconds(budget.progress(20)) == pytest.approx(160.0)


def status(**changes):
    values = {
        "epoch": 3, "max_epochs": 10, "step": 1046, "total_steps": 3230, "loss": 0.0704,
        "metric": ("accuracy", 0.8123), "elapsed": 62.0, "left": 3727.0,
        "tokens_per_second": 12490.0, "padding": 0.08,
    }  # fmt: skip
    return TrainingStatus(**{**values, **changes})


@pytest.mark.catches("the_line_is_as_long_as_it_likes")
@given(st.integers(40, 200), st.integers(0, 10**6), st.sampled_from(["loss", "exact match"]))
def test_line_fits_the_terminal(width, step, name):
    bar, line = fit_line(status(step=step, metric=(name, 0.5)), width)
    assert 8 <= bar <= 40
    assert bar + 1 + len(line) <= width
    assert line.startswith(("epoch", "step"))


def test_line_has_what_matters_at_80_columns_and_all_at_120():
    bar, line = fit_line(status(), 80)
    assert line == "epoch 3/10  step 1046/3230  loss 0.070  accuracy 0.812  left 1:02:07"
    assert bar == 10
    wide = "epoch 3/10  step 1046/3230  loss 0.070  accuracy 0.812  elapsed 1:02  left 1:02:07"
    assert fit_line(status(), 120)[1] == wide + "  12,490 tokens/s"
    assert format_status(status()) == wide + "  12,490 tokens/s  padding 8%"
    unknown = status(max_epochs=None, total_steps=None, metric=None, left=0.0, padding=0.0)
    assert fit_line(unknown, 80)[1] == (
        "epoch 3  step 1046  loss 0.070  elapsed 1:02  12,490 tokens/s"
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (187, "3:07"), (3753, "1:02:33")]
)
def test_clock_has_one_form(seconds, text):
    assert format_clock(seconds) == text


def test_terminal_shows_the_line(tmp_path):
    """At 80 columns, one line of the terminal, with the bar at its start."""
    output = io.StringIO()
    console = Console(file=output, width=80, force_terminal=True, legacy_windows=False)
    progress = ProgressCallback(
        Budget(max_steps=100, max_epochs=4), tmp_path / "rows", console, metric="accuracy",
        total_steps=100,
    )  # fmt: skip
    progress.budget.epochs = 1.4
    trainer = types.SimpleNamespace(global_step=40)
    module = types.SimpleNamespace(train_loss=0.25, tokens=90, padding=10)
    progress.on_train_start(trainer, module)
    progress.rows.append({"step": 30, "val_accuracy": 0.75, "val_loss": 1.0})
    progress._render(trainer, module, 0.4)
    progress._bar.refresh()
    progress._bar.stop()
    lines = [re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", line) for line in output.getvalue().splitlines()]
    last = [line.strip("\r") for line in lines if "epoch" in line][-1]
    assert re.fullmatch(r"\S+ epoch 2/4  step 40/100  loss 0\.250  accuracy 0\.750 .*", last)
    assert len(last.rstrip()) <= 80
