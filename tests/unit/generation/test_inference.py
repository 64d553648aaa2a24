"""Models in use: eval mode within a context, and copies with another type of weights."""

import pytest

from miniformer import registry
from miniformer.generation.inference import eval_mode, inference_model
from tests.kit import tiny_model


@pytest.mark.catches("model_is_left_in_eval_mode")
def test_eval_mode_of_two_models():
    models = tiny_model().train(), tiny_model().train()
    models[1].layers[0].eval()
    before = [[module.training for module in model.modules()] for model in models]
    with eval_mode(*models):
        assert not any(module.training for model in models for module in model.modules())
    assert [[module.training for module in model.modules()] for model in models] == before


def test_copy_is_that_of_the_last_function_that_applies(monkeypatch):
    model, calls = tiny_model(), []

    def copies(name, result):
        return lambda *given: calls.append((name, *given)) or result

    functions = [("last", copies("last", None)), ("first", copies("first", "copy"))]
    monkeypatch.setattr(registry, "load_all", lambda kind, last_first: functions)
    assert inference_model(model, "float32") is model
    assert calls == []
    assert inference_model(model, "bfloat16") == "copy"
    assert calls == [("last", model, "bfloat16"), ("first", model, "bfloat16")]
    functions.pop()
    assert inference_model(model, "bfloat16") is model
