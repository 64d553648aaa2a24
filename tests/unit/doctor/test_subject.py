"""Saved models of each task with each kind of input are subjects that pass the checks."""

import pytest

from miniformer import registry
from miniformer.doctor.run_checks import run_checks
from miniformer.doctor.subject import Subject
from tests.unit.doctor.cases import CASES, make_pipeline

# `export` and `speed` take seconds; tests/slow/check_doctor.py runs all on each.
CHECKS = [x for x in registry.builtin_names("check") if x not in ("export", "speed")]


def test_cases_have_every_task():
    names = {name for name, _, _ in CASES.values()}
    aliases = {registry.current_name("task", name) for name in registry.builtin_names("task")}
    assert names == aliases


@pytest.mark.parametrize("case", CASES)
def test_checks_pass_on_a_model_of_each_kind_of_input(case, tmp_path):
    make_pipeline(case).save(tmp_path / "model")
    outcomes = list(run_checks(Subject(tmp_path / "model"), CHECKS))
    assert {outcome.name: outcome.problems for outcome in outcomes if outcome.problems} == {}
    generates = "language" in case or case.startswith("translation")
    skipped = {x.name for x in outcomes if x.status == "does not apply"}
    expected = set() if generates else {"cache", "precision"}
    expected |= {"tokenizer"} if case.endswith("of vectors") and not generates else set()
    assert skipped == expected
