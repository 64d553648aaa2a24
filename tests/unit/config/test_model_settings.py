"""Settings of the model of a run: conflicts with their fixes, and the order of transforms."""

import pytest

from miniformer.config import ConfigError
from miniformer.config.train_settings import ModelSettings

BASE = {"init_from": "base"}


@pytest.mark.catches("conflicts_of_initial_weights_pass")
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": "decoder", "model_config": {"causal": False}}, "model=decoder is causal"),
        ({**BASE, "model_size": "tiny"}, "model_size has no effect with init_from"),
        ({**BASE, "pretrain": {}}, "pretrain and init_from both set initial weights"),
        ({"adapter_config": {"r": 8}}, "adapter_config needs adapter; set one of lora, dora"),
        ({"base_weights": "int8"}, "base_weights needs adapter"),
        ({"adapter": "lora"}, "adapter needs init_from"),
        ({**BASE, "adapter": "lora", "quantize_aware": "int4"}, "quantize_aware trains all"),
        ({"pretrain": {}, "quantize_aware": "int8"}, "pretrain and quantize_aware exclude"),
        ({"pretrain": {}, "transforms": ["sparse_attention"]}, "pretrain and transforms exclude"),
    ],
)
def test_conflicts_are_refused(values, message):
    with pytest.raises(ConfigError) as caught:
        ModelSettings(**values)
    assert message in str(caught.value)


@pytest.mark.catches("adapter_is_not_the_last_transform")
def test_transforms_end_with_the_adapter_behind_the_rounding_of_its_base():
    adapter = {"adapter": "lora", "adapter_config": {"r": 4}, "base_weights": "int4"}
    settings = ModelSettings(**BASE, **adapter, transforms=["sparse_attention"])
    assert settings.all_transforms() == [
        "sparse_attention",
        {"type": "quantized_base", "bits": 4},
        {"type": "adapter", "method": "lora", "r": 4},
    ]


def test_rounding_of_a_base_that_was_trained_so_is_no_second_transform():
    rounding = {"type": "quantize_aware", "to": "int8"}
    assert ModelSettings(quantize_aware="int8").all_transforms() == [rounding]
    again = ModelSettings(quantize_aware="int8", transforms=[rounding])
    assert again.all_transforms() == [rounding]
