"""`auto`: trials before a run, their budget, and what is stored."""

import io
import json
import signal
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import miniformer
from miniformer.checkpoint.pipeline import load
from miniformer.train_config import TrainConfig
from miniformer.training.run import train
from miniformer.training.setup import estimate, prepare
from miniformer.training.trials import auto, candidates, trial
from miniformer.training.trials.candidates import Candidate, candidate_groups
from tests.kit import run_python

ROWS = [
    {"input": [[float((7 * i) % 11), float((5 * i) % 13), float(i)]], "label": int(i % 4 > 1)}
    for i in range(140)
]
SHAPE = {"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 16, "dropout": 0.0}
SETTINGS = {
    "task": "classification", "model_config": SHAPE, "max_steps": 12, "logger": "none",
    "precision": "float32", "accelerator": "cpu", "wide_head": "off",
}  # fmt: skip
SLOW_LR = 1e-7
GROUP = [Candidate({}, f"lr {SLOW_LR}"), Candidate({"lr": 0.02}), Candidate({"lr": 0.0})]


@pytest.fixture
def trials(monkeypatch):
    """Trials of learning rates, whose steps do not depend on the time; the runs are long enough."""
    fixed = estimate.RunEstimate(200, 0.3, 60.0, 0)
    monkeypatch.setattr(trial, "estimate_run", lambda run, **options: fixed)
    monkeypatch.setattr(auto._Search, "_certainly_short", lambda self: False)
    monkeypatch.setattr(auto, "candidate_groups", lambda *args: [GROUP])
    monkeypatch.setattr(auto, "TIME_SHARES", {"quick": 1.0, "full": 2.0})
    return monkeypatch


def run(tmp_path, **settings):
    output = io.StringIO()
    settings = {**SETTINGS, "work_dir": str(tmp_path), "lr": SLOW_LR, **settings}
    config = TrainConfig(train_path="<records in memory>", **settings)
    result = train(config, console=Console(file=output, width=200), records={"train_path": ROWS})
    return result, output.getvalue()


def weights(result):
    return load(result.folder / "last").model.state_dict()


@pytest.mark.catches("choices_are_not_stored", "choices_are_lost_on_resume")
def test_run_with_a_chosen_setting_is_the_run_with_that_setting(trials, tmp_path):
    """The choice is printed with its evidence, and stored."""
    chosen, output = run(tmp_path, auto="quick", experiment_name="auto")
    given, _ = run(tmp_path, lr=0.02, experiment_name="given")
    for name, value in weights(given).items():
        torch.testing.assert_close(weights(chosen)[name], value, rtol=0, atol=0)
    stored = json.loads((chosen.folder / "trials.json").read_text())
    assert stored["chosen"] == {"lr": 0.02}
    assert [row["settings"] for row in stored["trials"][:3]] == [x.settings for x in GROUP]
    for row in stored["trials"]:
        assert f"{row['name']}: {row['steps']} steps, accuracy {row['accuracy']:.4g}" in output
    assert "lr: 0.02 (auto=quick: " in output
    config = json.loads((chosen.folder / "train_config.json").read_text())
    assert config["lr"] == 0.02
    assert "auto=quick: " in (chosen.folder / "report.html").read_text()
    # A resumed run has the stored choice.
    trials.setattr(auto, "choose_settings", lambda *args: pytest.fail("tried again"))
    extended = [
        miniformer.train(ROWS, resume=str(result.folder), max_steps=14, quiet=True)
        for result in (chosen, given)
    ]
    assert extended[0].folder == chosen.folder
    for name, value in weights(extended[1]).items():
        assert torch.equal(weights(extended[0])[name], value)


def test_run_with_the_defaults_is_the_run_without_trials(trials, tmp_path):
    trials.setattr(auto, "candidate_groups", lambda *args: [GROUP[::2]])
    tried, output = run(tmp_path, auto="full", experiment_name="auto")
    plain, _ = run(tmp_path, experiment_name="plain")
    for name, value in weights(plain).items():
        torch.testing.assert_close(weights(tried)[name], value, rtol=0, atol=0)
    assert "chosen: the defaults; no alternative is better by more than the noise" in output
    assert not (plain.folder / "trials.json").exists()


@pytest.mark.catches("trials_see_the_validation_data")
def test_trials_use_disjoint_parts_of_the_training_data(trials, tmp_path):
    parts, original = [], trial.Trial.__init__

    def record(self, candidate, config, fit, held_out):
        parts.append([{tuple(row["input"][0]) for row in part} for part in (fit, held_out)])
        original(self, candidate, config, fit, held_out)

    trials.setattr(trial.Trial, "__init__", record)
    config = TrainConfig(train_path="<records in memory>", auto="quick", lr=SLOW_LR, **SETTINGS)
    prepared = prepare.prepare(config, Console(quiet=True), in_memory={"train_path": ROWS})
    auto.choose_settings(prepared, config, Console(quiet=True), {"train_path": ROWS})
    training = {tuple(row["input"][0]) for row in prepared.data.chunks["train"].records}
    assert len(parts) == 3
    assert len(training) < len(ROWS)
    for fit, held_out in parts:
        assert fit
        assert held_out
        assert not fit & held_out
        assert fit | held_out == training


@pytest.mark.catches("trials_exceed_their_share")
@given(seconds=st.lists(st.floats(0.01, 1e5), min_size=2, max_size=6), limit=st.floats(-10.0, 1e5))
def test_planned_trials_stay_within_the_limit(seconds, limit):
    share = auto.share_of_run(seconds, limit)
    planned = share * sum(seconds)
    if len(seconds) > 2:  # the defaults and the most expensive half again, for twice as long
        retained = sorted(seconds[1:])[-((len(seconds) - 1) // 2) :]
        planned += 2 * share * (seconds[0] + sum(retained))
    assert planned <= max(0.0, limit)
    assert 0 <= share <= 0.5


@given(seconds=st.floats(1e-3, 1e4), cost=st.floats(0.1, 50.0), limit=st.floats(-10.0, 1e4))
def test_preparation_stays_within_the_limit(seconds, cost, limit):
    """The defaults are prepared again if a part of the records is used."""
    share = auto.affordable_share(seconds, cost, limit)
    planned = cost * seconds if share == 1 else share * (1 + cost) * seconds
    assert planned <= max(0.0, limit) * (1 + 1e-9)
    assert 0 <= share <= 1


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"streaming": True, "max_steps": 1}, "streaming"),
        ({"init_from": "model"}, "init_from"),
        ({"pretrain": {"max_epochs": 1}}, "pretrain"),
        ({"devices": 2}, "several devices"),
        ({}, None),
    ],
)
def test_settings_that_exclude_trials(settings, reason):
    assert candidates.unsupported_reason(TrainConfig(train_path="x", **settings)) == reason


def test_short_runs_have_no_trials_and_say_why(tmp_path):
    _, output = run(tmp_path, auto="quick")
    assert "auto=quick: no trials: the run takes less than 20 s" in output


@pytest.mark.catches("interrupted_trials_choose_the_defaults")
@pytest.mark.parametrize(("number", "error"), [(2, KeyboardInterrupt), (15, SystemExit)])
def test_signal_ends_trials_without_a_run_folder(number, error, trials, tmp_path):
    output = io.StringIO()
    original = trial.MiniFormerLitModule.training_step

    def training_step(self, batch, index):
        signal.raise_signal(number)
        return original(self, batch, index)

    trials.setattr(trial.MiniFormerLitModule, "training_step", training_step)
    config = TrainConfig(
        train_path="<records in memory>", auto="quick", work_dir=str(tmp_path / "runs"),
        lr=SLOW_LR, **SETTINGS,
    )  # fmt: skip
    with pytest.raises(error):
        train(config, console=Console(file=output, width=200), records={"train_path": ROWS})
    assert "interrupted during the trials of auto: nothing was trained or written" in (
        output.getvalue()
    )
    assert not (tmp_path / "runs").exists()


def test_dry_run_lists_the_candidates(tmp_path):
    config = TrainConfig(train_path="<records in memory>", auto="quick", **SETTINGS)
    prepared = prepare.prepare(config, Console(quiet=True), in_memory={"train_path": ROWS})
    assert candidates.describe(prepared, config) == (
        "auto=quick: would try model_config.pooling mean+max, in at most 15% of the time"
    )
    output = io.StringIO()
    console = Console(file=output, width=200)
    estimate.dry_run(config, console, in_memory={"train_path": ROWS})
    assert "auto=quick: would try model_config.pooling mean+max" in output.getvalue()


@pytest.mark.catches("wide_heads_are_trained_in_trials")
def test_wide_head_decides_without_training(trials, tmp_path):
    """The losses of a trial with 0 steps are those of the fitted linear model alone."""
    rows = [
        {"input": f"{'good' if i % 2 else 'bad'} film {i} {i % 7}", "label": i % 2}
        for i in range(200)
    ]
    settings = {**SETTINGS, "wide_head": "auto", "model_config": {**SHAPE, "max_seq_len": 64}}
    config = TrainConfig(train_path="<records in memory>", auto="full", **settings)
    prepared = prepare.prepare(config, Console(quiet=True), in_memory={"train_path": rows})
    groups = candidate_groups(prepared, config, "full")
    assert [x.settings for x in groups[0]] == [{}, {"tokenizer": "char"}, {"tokenizer": "word"}]
    assert len(groups) == 1
    trials.setattr(auto, "candidate_groups", lambda *args: groups)
    result = auto.choose_settings(prepared, config, Console(quiet=True), {"train_path": rows})
    stored = result.trials["trials"]
    assert [row["steps"] for row in stored] == [0, 0, 0]
    assert all(row["accuracy"] == 1.0 for row in stored)


@pytest.mark.catches("unknown_words_are_comparable")
def test_tokenizer_that_loses_targets_is_not_comparable(trials):
    """Unknown words are one token that is easy to predict."""
    rows = [{"source": f"s{i}", "target": f"t{i}"} for i in range(120)]
    fit, held_out = rows[:100], rows[100:]
    settings = {**SETTINGS, "task": "seq2seq"}
    results = {}
    for name in ("bpe", "word"):
        config = TrainConfig(train_path="<records in memory>", **settings)
        source = prepare.as_records(held_out, miniformer.registry.get("task", "seq2seq")().schema)
        item = trial.Trial(Candidate({"tokenizer": name}), config, fit, source)
        results[name] = item.is_comparable
    assert results == {"bpe": True, "word": False}


@pytest.mark.catches("trial_losses_are_means_of_tokens")
def test_trial_losses_are_sums_of_a_record(trials):
    """Losses of tokens are not comparable between tokenizers."""
    rows = [{"source": "s", "target": "a b c d"} for _ in range(40)]
    task = miniformer.registry.get("task", "seq2seq")()
    config = TrainConfig(train_path="<records in memory>", **{**SETTINGS, "task": "seq2seq"})
    held_out = prepare.as_records(rows[:5], task.schema)
    result = trial.Trial(Candidate({"tokenizer": "char"}), config, rows, held_out).train(1)
    assert result.losses == pytest.approx(result.results.losses * (len("a b c d") + 1))


def test_unknown_mode_is_one_message():
    result = run_python("-m", "miniformer.trainer", "x.jsonl", "--auto", "fast")
    assert result.returncode == 2
    assert "auto" in result.stderr
    assert "quick" in result.stderr
    assert "Traceback" not in result.stderr


def test_time_of_the_first_trial_decides_whether_runs_are_short(trials, tmp_path):
    short = SimpleNamespace(steps=200, step_seconds=0.01, seconds=2.0)
    trials.setattr(trial, "estimate_run", lambda run, **options: short)
    _, output = run(tmp_path, auto="quick")
    assert "auto=quick: no trials: the run takes less than 20 s" in output
