"""Loss terms of a model with a wide head."""

import torch

import miniformer

RECORDS = [{"input": f"{word} text {i}", "label": word} for i in range(12) for word in ("a", "b")]


def one(model, batch):
    """A term without a gradient."""
    return torch.tensor(2.0), torch.tensor(1.0)


def test_the_weights_of_a_wide_head_are_fitted_to_the_outputs_of_each_record_once():
    """The terms of a validation run the model once more, and the weights do not depend on it."""
    options = {
        "task": "classification", "val": RECORDS, "in_memory": True, "max_steps": 2,
        "batch_size": 8, "model_config": {"d_model": 8, "n_heads": 1, "n_layers": 1},
    }  # fmt: skip
    plain = miniformer.train(RECORDS, **options)
    terms = [{"type": f"{__name__}:one", "name": "one"}]
    result = miniformer.train(RECORDS, **options, loss_terms=terms)
    assert result.metrics["val_one"] == 2.0
    heads = (plain.pipeline.model.wide_head, result.pipeline.model.wide_head)
    assert torch.equal(heads[0].mix, heads[1].mix)
    assert plain.metrics["val_loss"] == result.metrics["val_loss"]
