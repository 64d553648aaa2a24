"""Keys of files whose models compute differently here are refused, not ignored."""

import pytest

from miniformer import TransformerConfig
from miniformer.config import UserError
from miniformer.config.architectures import architecture_config
from miniformer.interop.gguf.families import select_architecture
from miniformer.interop.gguf.metadata import read_hyperparameters, write_hyperparameters
from tests.unit.interop.gguf import cases


def fields_of(name, **keys):
    """Config fields of the keys of a model, some of which are changed."""
    preset, fields = cases.ALL[name]
    config = TransformerConfig(**architecture_config(preset, **{**cases.SIZES, **fields}))
    item = select_architecture(config, seq2seq=False)
    metadata = write_hyperparameters(item, config)
    metadata |= {f"{item.name}.{key.replace('__', '.')}": value for key, value in keys.items()}
    return read_hyperparameters(item, metadata, {}, config.vocab_size)


@pytest.mark.catches("keys_of_gguf_are_ignored")
@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("llama", {"attention__causal": False}, "llama.attention.causal=False: here the model is"),
        ("bert", {"attention__causal": True}, "bert.attention.causal=True: here the model is an"),
        ("llama", {"rope__scale_linear": 4.0}, "llama.rope.scale_linear, of old files, is not"),
        ("llama", {"rope__scaling__type": "dynamic", "rope__scaling__factor": 2.0}, "'dynamic'"),
        ("gemma3", {"attention__sliding_window_pattern": 4}, "only a list with true or false"),
        ("llama", {"attention__head_count_kv": [2, 2, 2]}, "must be a positive integer, not"),
        ("llama", {"attention__layer_norm_rms_epsilon": float("nan")}, "must be finite, not nan"),
        ("llama", {"rope__scaling__type": 3}, "must be a string, not 3"),
    ],
)
def test_keys_without_an_equal_here_are_refused(name, keys, message):
    with pytest.raises(UserError) as error:
        fields_of(name, **keys)
    assert message in str(error.value)


def test_keys_of_no_effect_are_taken():
    fields = fields_of("llama", rope__scale_linear=1.0, attention__causal=True)
    assert fields.get("rotary_scaling") is None
    assert fields["n_kv_heads"] == 2


@pytest.mark.catches("large_gemma_has_the_scale_of_others")
def test_the_largest_gemma_has_the_scale_of_its_own():
    """llama.cpp divides by sqrt(d_model / n_heads) in models of 46 layers, not sqrt(head_dim)."""
    sizes = {**cases.SIZES, "n_layers": 46, "head_dim": 32, "n_kv_heads": 2}
    plain = TransformerConfig(**architecture_config("gemma2", **sizes))
    with pytest.raises(UserError, match=r"attention_scale=.* \(only 0\.25\)"):
        select_architecture(plain, seq2seq=False)
    fields = architecture_config("gemma2", **sizes, query_pre_attn_scalar=16)
    item = select_architecture(TransformerConfig(**fields), seq2seq=False)
    metadata = write_hyperparameters(item, TransformerConfig(**fields))
    assert read_hyperparameters(item, metadata, {}, 96)["attention_scale"] == 0.25
