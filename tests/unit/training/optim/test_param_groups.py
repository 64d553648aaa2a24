"""Parameter groups: weight decay."""

import pytest

from miniformer.training.optim.optimizers import adamw
from tests.kit import tiny_model


@pytest.mark.catches("norms_and_embeddings_decay")
def test_weight_decay_is_for_linear_weights_only():
    model = tiny_model(tie_embeddings=False)
    groups = adamw(model, lr=1.0, weight_decay=0.5).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    names = {
        name for name, parameter in model.named_parameters() if decay.pop(id(parameter)) == 0.5
    }
    assert not decay
    assert names == {
        name
        for name, parameter in model.named_parameters()
        if parameter.dim() == 2 and "embedding" not in name
    }
