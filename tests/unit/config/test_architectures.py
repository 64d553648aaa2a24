"""Every architecture: sizes computed from the config are those of the model."""

import dataclasses

import pytest
import torch

from miniformer.config import TransformerConfig
from miniformer.config.architectures import (
    ARCHITECTURES,
    SEQ2SEQ_ARCHITECTURES,
    architecture_config,
)
from miniformer.model.execution_settings import set_attention_backend
from miniformer.model.seq2seq import Seq2SeqTransformer
from miniformer.model.transformer import Transformer

LENGTH, SOURCE = 12, 7
SIZES = {
    "vocab_size": 31, "d_model": 16, "n_heads": 4, "n_kv_heads": 2, "head_dim": 8, "d_ff": 24,
    "n_layers": 3, "max_seq_len": 32, "dropout": 0.0,
}  # fmt: skip

every_family = pytest.mark.parametrize("name", ARCHITECTURES)


def build(name, **more):
    values = architecture_config(name, **SIZES, **more)
    if values.get("sliding_window"):
        values["sliding_window"] = 5
    if name in SEQ2SEQ_ARCHITECTURES:
        values["n_decoder_layers"] = 2
        return Seq2SeqTransformer(TransformerConfig.from_dict(values)).eval()
    return Transformer(TransformerConfig.from_dict(values)).eval()


def call(model, length=LENGTH):
    ids = torch.zeros(1, length, dtype=torch.long)
    return model(ids, ids) if isinstance(model, Seq2SeqTransformer) else model(ids)


@pytest.mark.catches("tied_head_counts_twice")
@every_family
def test_parameter_count_matches_the_model(name):
    model = build(name)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert model.config.num_params(seq2seq=name in SEQ2SEQ_ARCHITECTURES) == counted


@every_family
def test_flops_match_the_model(name):
    """torch counts masked pairs too, so the masks are removed first."""
    from torch.utils.flop_counter import FlopCounterMode

    model = build(name)
    set_attention_backend(model, "plain")
    with FlopCounterMode(display=False) as counter:
        call(model)
    full = dataclasses.replace(
        model.config, causal=False, sliding_window=None, window_pattern=None,
        rotary_base_local=None,
    )  # fmt: skip
    seq2seq = name in SEQ2SEQ_ARCHITECTURES
    expected = LENGTH * full.flops_per_token(LENGTH, seq2seq=seq2seq)
    if seq2seq:  # the decoder's own attention is causal in the config's count
        expected += 2 * 4 * (4 * 8) * LENGTH * (LENGTH - 1) / 2
    assert counter.get_total_flops() == expected


@pytest.mark.catches("int8_cache_is_counted_without_scales")
@pytest.mark.parametrize(
    "name",
    [n for n in ARCHITECTURES if ARCHITECTURES[n].get("causal") or n in SEQ2SEQ_ARCHITECTURES],
)
@pytest.mark.parametrize("kind", ["window", "full", "int8"])
@pytest.mark.parametrize("length", [4, LENGTH])
def test_cache_bytes_match_the_model(name, kind, length):
    model = build(name)
    cache = model.new_cache(2, length, kind)
    ids = torch.zeros(2, length, dtype=torch.long)
    source_len = None
    if isinstance(model, Seq2SeqTransformer):
        source_len = SOURCE
        model.features(ids, model.encode(ids[:, :1].expand(-1, SOURCE)), cache=cache)
    else:
        model(ids, cache=cache)
    expected = model.config.cache_bytes(2, length, kind=kind, source_len=source_len)
    assert cache.nbytes == expected
    stored = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for layer in cache.layers
        for tensor in layer.tensors().values()
    }
    cross = sum(keys.nbytes + values.nbytes for keys, values in cache.cross_kv or [])
    assert sum(stored.values()) + cross == expected


def test_unknown_architecture_is_rejected_with_a_suggestion():
    with pytest.raises(ValueError, match=r"unknown architecture 'lama' \(did you mean 'llama'\?\)"):
        architecture_config("lama", d_model=16)
    with pytest.raises(ValueError, match="architecture 'gemma' needs d_model"):
        architecture_config("gemma")


@pytest.mark.catches("family_ignores_its_width")
def test_derived_sizes_of_architectures():
    assert architecture_config("gemma", d_model=64)["embedding_scale"] == 8.0
    assert architecture_config("t5", d_model=64)["logit_scale"] == 0.125
    assert (
        architecture_config("gemma2", d_model=64, query_pre_attn_scalar=16)["attention_scale"]
        == 0.25
    )
    assert architecture_config("llama", d_model=64, rotary_base=3.0)["rotary_base"] == 3.0


def test_t5_scales_logits_of_a_tied_head_only():
    assert "logit_scale" not in architecture_config("t5", d_model=64, tie_embeddings=False)
    assert (
        architecture_config("t5", d_model=64, tie_embeddings=False, logit_scale=0.5)["logit_scale"]
        == 0.5
    )
    assert (
        architecture_config("t5", tie_embeddings=False)["position"] == "t5_relative"
    )  # nothing needs d_model
