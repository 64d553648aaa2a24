"""Settings of built models: of which layers, and what is refused."""

import pytest

from miniformer.config import UserError
from miniformer.model.execution_settings import (
    set_activation_checkpointing,
    set_attention_backend,
)
from miniformer.model.seq2seq import Seq2SeqTransformer
from tests.kit import tiny_model


@pytest.mark.parametrize("layers", [[99], [0, 2], [-1]])
def test_set_attention_backend_rejects_missing_layer(layers):
    model = tiny_model()
    with pytest.raises(UserError, match=f"no layer {layers[-1]}; its layers are 0 to 1"):
        set_attention_backend(model, "plain", layers)
    assert {layer.attention.backend for layer in model.layers} == {"auto"}
    with pytest.raises(UserError, match="no layer 0; it has no stack of layers"):
        set_attention_backend(model.embedding, "plain", [0])


@pytest.mark.catches("backend_of_a_layer_is_that_of_all")
def test_set_attention_backend_of_layers_in_the_longer_stack():
    model = tiny_model(model=Seq2SeqTransformer, causal=False, n_decoder_layers=3)
    set_attention_backend(model, "plain", [2])
    chosen = [line.partition(":")[0] for line in model.backend_report() if "(requested)" in line]
    assert chosen == ["decoder.layers.2.attention", "decoder.layers.2.cross_attention"]


def test_set_attention_backend_rejects_unknown_name_with_a_suggestion():
    with pytest.raises(UserError, match=r"unknown attention backend 'flx' .*'flex'"):
        set_attention_backend(tiny_model(), "flx")


def test_unknown_checkpointing_mode_is_rejected():
    with pytest.raises(UserError, match=r"unknown activation checkpointing 'ful' .*'full'"):
        set_activation_checkpointing(tiny_model(), "ful")
