"""The config of pretraining."""

import pytest

from miniformer.config import UserError
from miniformer.training.setup import pretraining


@pytest.mark.catches("warm_start_may_have_another_shape")
def test_pretraining_cannot_change_the_model_shape():
    overrides = pretraining._check_overrides({"model_config": {"dropout": 0.3}, "max_steps": 5})
    assert overrides == {"task_config": {}, "model_config": {"dropout": 0.3}, "max_steps": 5}
    with pytest.raises(UserError, match=r"pretrain: model_config may set .*, not d_model"):
        pretraining._check_overrides({"model_config": {"d_model": 32}})
