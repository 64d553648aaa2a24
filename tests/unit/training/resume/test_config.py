"""The config of a resumed run."""

import json

import pytest

from miniformer.config import UserError
from miniformer.train_config import TrainConfig
from miniformer.training.resume.config import CONFIG_FILE, complete_config, resume_config


@pytest.mark.catches("settings_of_a_resumed_run_may_change")
def test_resume_config_rejects_changed_fixed_fields(tmp_path):
    config = TrainConfig(train_path="a.jsonl", seed=3, max_steps=5)
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config.to_dict()))
    assert resume_config(tmp_path, {"max_steps": 9, "seed": 3}).max_steps == 9
    with pytest.raises(UserError, match=r"resume: seed is 3 in .*, not 4; leave it out"):
        resume_config(tmp_path, {"max_steps": 9, "seed": 4})


def stored(folder, without=(), **settings):
    """A run folder whose version lacked some fields."""
    values = TrainConfig(train_path="a.jsonl", **settings).to_dict()
    values = {name: value for name, value in values.items() if name not in without}
    (folder / CONFIG_FILE).write_text(json.dumps(values))
    return folder


LATER = ("wide_head", "val_share", "folds", "fold")


@pytest.mark.catches("earlier_runs_get_later_defaults")
def test_config_of_an_earlier_version_keeps_its_defaults(tmp_path):
    folder = stored(tmp_path, LATER, task="classification")
    config = resume_config(folder, {})
    assert (config.wide_head, config.val_share, config.checkpoint_metric) == ("off", 0.0, None)
    folder = stored(tmp_path, LATER, task="classification", val_path="b.jsonl")
    config = resume_config(folder, {})
    assert (config.checkpoint_metric, config.early_stopping_patience) == ("accuracy", 0)
    given = {"early_stopping_patience": 3, "checkpoint_metric": "mcc", "val_path": "b.jsonl"}
    config = resume_config(stored(tmp_path, LATER, task="classification", **given), {})
    assert given == {name: getattr(config, name) for name in given}


def test_config_of_this_version_is_resumed_as_stored(tmp_path):
    config = resume_config(stored(tmp_path, task="classification", val_path="b.jsonl"), {})
    assert (config.wide_head, config.early_stopping_patience) == ("auto", None)
    assert config.checkpoint_metric is None


@pytest.mark.catches("init_from_takes_model_directories_only")
def test_init_from_a_run_folder_is_from_its_best_model(tmp_path):
    """As for all commands that take a model directory."""
    for name in ("best", "last"):
        (tmp_path / "run" / name).mkdir(parents=True)
        (tmp_path / "run" / name / "format_version").write_text("1")
    (tmp_path / "run" / CONFIG_FILE).write_text("{}")
    for given, expected in (("run", "run/best"), ("run/last", "run/last"), ("none", "none")):
        config = TrainConfig(train_path="a", init_from=str(tmp_path / given), optimizer="muon")
        result = complete_config(config)
        assert result.init_from == str(tmp_path / expected)
        assert result.given_fields() == {**config.given_fields(), "init_from": result.init_from}
