"""The config of a resumed run."""

import json

import pytest

from miniformer.config import UserError
from miniformer.train_config import TrainConfig
from miniformer.training.resume.config import CONFIG_FILE, resume_config


@pytest.mark.catches("settings_of_a_resumed_run_may_change")
def test_resume_config_rejects_changed_fixed_fields(tmp_path):
    config = TrainConfig(train_path="a.jsonl", seed=3, max_steps=5)
    (tmp_path / CONFIG_FILE).write_text(json.dumps(config.to_dict()))
    assert resume_config(tmp_path, {"max_steps": 9, "seed": 3}).max_steps == 9
    with pytest.raises(UserError, match=r"resume: seed is 3 in .*, not 4; leave it out"):
        resume_config(tmp_path, {"max_steps": 9, "seed": 4})
