"""Learning rate schedules at known points."""

import pytest

from miniformer import MiniFormerLitModule, registry
from miniformer.training.callbacks.budget import Budget
from tests.kit import tiny_model

SCHEDULES = registry.names("scheduler")


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_stays_within_0_and_1(name):
    schedule = registry.get("scheduler", name)
    values = [schedule(i / 1000) for i in range(1001)]
    assert all(0.0 <= value <= 1.0 for value in values)
    assert max(values) == pytest.approx(1.0)
    assert values[-1] == pytest.approx(1.0 if name == "none" else 0.0)


@pytest.mark.catches("cosine_ends_at_a_half")
def test_schedules_at_known_points():
    at = {name: registry.get("scheduler", name) for name in SCHEDULES}
    assert at["cosine"](0.5) == pytest.approx(0.5)
    assert at["linear"](0.25) == pytest.approx(0.75)
    assert at["wsd"](0.8) == pytest.approx(1.0)
    assert at["wsd"](0.9) == pytest.approx(0.5)
    assert at["onecycle"](0.0) == pytest.approx(0.04)
    assert at["onecycle"](0.3) == pytest.approx(1.0)
    assert at["onecycle"](0.65) == pytest.approx(0.5)


@pytest.mark.catches("options_of_a_schedule_have_no_effect")
@pytest.mark.parametrize(
    ("name", "options", "points"),
    [
        ("wsd", {"decay_ratio": 0.5}, {0.0: 1.0, 0.5: 1.0, 0.75: 0.5, 1.0: 0.0}),
        ("wsd", None, {0.5: 1.0, 0.75: 1.0, 0.9: 0.5}),
        ("onecycle", {"pct_start": 0.5, "start_factor": 0.2}, {0.0: 0.2, 0.25: 0.6, 0.5: 1.0}),
    ],
)
def test_module_applies_the_options_of_its_schedule(name, options, points):
    module = MiniFormerLitModule(
        tiny_model(), scheduler=name, scheduler_config=options, budget=Budget(max_steps=8)
    )
    for progress, factor in points.items():
        assert module._schedule(progress) == pytest.approx(factor)
