import copy
import dataclasses
import json
import math
import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniformer import registry
from miniformer.config import ConfigError, GenerationConfig, TransformerConfig, UserError
from miniformer.config.resolved import ResolvedSetting
from miniformer.config.train_settings import HardwareSettings
from miniformer.model.transformer import Transformer
from miniformer.train_config import TrainConfig


@pytest.mark.catches("unknown_keys_are_dropped")
def test_config_rejects_unknown_keys_with_a_suggestion():
    with pytest.raises(ConfigError, match=r"unknown field 'n_head' \(did you mean 'n_heads'\?\)"):
        TransformerConfig.from_dict({"n_head": 4})


@pytest.mark.catches("error_of_another_process_loses_its_problems")
def test_config_error_can_be_pickled():
    error = ConfigError("TrainConfig", ["lr must be a number, not 'x'", "task is missing"])
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.problems) == (str(error), error.problems)


def test_config_error_lists_every_problem():
    with pytest.raises(ConfigError) as caught:
        TransformerConfig.from_dict(
            {"d_modl": 8, "n_heads": 0, "dropout": "much", "bias": 1, "activation": "gel"}
        )
    assert caught.value.problems == [
        "unknown field 'd_modl' (did you mean 'd_model'?); known: "
        + ", ".join(field.name for field in dataclasses.fields(TransformerConfig)),
        "n_heads must be at least 1, not 0",
        "dropout must be a number, not 'much'",
        "unknown activation 'gel' (did you mean 'gelu'?); known: "
        "gelu, gelu_tanh, relu, silu, swiglu, geglu, geglu_tanh, reglu",
        "bias must be true or false, not 1",
    ]
    assert all(problem in str(caught.value) for problem in caught.value.problems)


@pytest.mark.catches("heads_need_not_divide_the_width")
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"d_model": 100, "n_heads": 8},
            "d_model=100 is not divisible by n_heads=8; use d_model=104",
        ),
        ({"n_heads": 8, "n_kv_heads": 3}, "n_kv_heads=3 does not divide n_heads=8"),
        ({"rotary_pct": 0.01}, "rotary_pct=0.01 rotates no pair of a head of 32"),
        ({"rotary_pct": 1.5}, "rotary_pct must be at most 1.0, not 1.5"),
        ({"dropout": 1.0}, "dropout must be at most 0.99, not 1.0"),
        ({"dropout": float("nan")}, "dropout must be at least 0.0, not nan"),
        ({"vocab_size": True}, "vocab_size must be an integer, not True"),
        ({"n_layers": None}, "n_layers must be an integer, not None"),
        ({"norm": "batchnorm"}, "unknown norm 'batchnorm'"),
        ({"attention_scale": 0.0}, "attention_scale must be above 0.0, not 0.0"),
        ({"embedding_scale": 0}, "embedding_scale must be above 0.0, not 0"),
        ({"logit_scale": 0.0}, "logit_scale must be above 0.0, not 0.0"),
        ({"norm_eps": 0.0}, "norm_eps must be above 0.0, not 0.0"),
        ({"norm_eps": float("nan")}, "norm_eps must be above 0.0, not nan"),
        ({"attention_scale": 1e300}, "attention_scale must be a finite number of at most 3.4e+38"),
        ({"attention_scale": 10**400}, "attention_scale must be a finite number"),
    ],
)
def test_model_config_rejects_values_out_of_range(values, message):
    with pytest.raises(ConfigError) as caught:
        TransformerConfig.from_dict(values)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -1.0}, "temperature must be at least 0.0, not -1.0"),
        ({"top_p": 0.0}, "top_p must be above 0, not 0"),
        ({"top_p": 1.1}, "top_p must be at most 1.0, not 1.1"),
        ({"top_k": 0}, "top_k must be at least 1, not 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, not 0"),
        ({"topk": 3}, "did you mean 'top_k'?"),
    ],
)
def test_generation_config_rejects_values_out_of_range(values, message):
    with pytest.raises(ConfigError) as caught:
        GenerationConfig.from_dict(values)
    assert message in str(caught.value)


@pytest.mark.catches("settings_without_effect_pass", "times_in_other_forms_pass")
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"train_path": ""}, "train_path is missing"),
        ({"max_time": "10"}, "max_time must be a time such as 90s, 10m or 1h30m, not '10'"),
        ({"max_time": "0s"}, "max_time must be a time"),
        ({"max_time": 5}, "max_time must be a string or null, such as 90s, 10m or 1h30m, not 5"),
        ({"scheduler": "onecycle", "warmup_steps": 5}, "warmup_steps has no effect"),
        ({"early_stopping_patience": 2, "val_share": 0}, "early_stopping_patience needs val_path"),
        ({"precision": "float16"}, "precision must be one of auto, float32, bf16, not 'float16'"),
        ({"model": "perceiver"}, "model must be one of encoder, decoder, seq2seq, not 'perceiver'"),
        ({"task": "languagemodeling"}, "did you mean 'language_modeling'?"),
        ({"logger": "tensorbord"}, "did you mean 'tensorboard'?"),
    ],
)
def test_train_config_rejects_values_out_of_range(values, message):
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_dict({"train_path": "x.jsonl", **values})
    assert message in str(caught.value)


def test_early_stopping_can_be_off_without_validation():
    config = TrainConfig(train_path="x.jsonl", val_share=0, early_stopping_patience=0)
    assert config.early_stopping_patience == 0


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("10m", 600), ("1h30m", 5400), ("1.5m", 90), ("2d", 172800)]
)
def test_parse_duration(text, seconds):
    assert TrainConfig(train_path="x", max_time=text).max_seconds == seconds


def test_config_examples_of_the_specification_are_valid():
    model = TransformerConfig(
        vocab_size=30522, d_model=512, n_heads=8, n_layers=6, d_ff=2048, dropout=0.1,
        activation="swiglu", rotary_pct=0.5, pre_norm=True, max_seq_len=1024,
    )  # fmt: skip
    run = TrainConfig(
        train_path="train.jsonl", val_path="val.jsonl", batch_size=32, lr=3e-4, max_epochs=20,
        scheduler="onecycle", work_dir="./runs", logger="wandb",
    )  # fmt: skip
    assert (model.head_width, model.rotary_dim, model.ff_width) == (64, 32, 2048)
    assert (run.batch_size, run.lr, run.max_epochs) == (32, 3e-4, 20)


@given(
    st.builds(
        TransformerConfig,
        d_model=st.sampled_from([48, 96, 240]),
        n_heads=st.sampled_from([1, 2, 4]),
        n_kv_heads=st.sampled_from([None, 1]),
        d_ff=st.sampled_from([None, 7]),
        activation=st.sampled_from(["relu", "swiglu"]),
        rotary_pct=st.floats(0.2, 1.0),
        causal=st.booleans(),
        output_dim=st.sampled_from([None, 2]),
    )
)
def test_config_json_round_trip(config):
    text = json.dumps(config.to_dict())
    assert TransformerConfig.from_dict(json.loads(text)) == config


def test_ff_width():
    assert TransformerConfig(d_model=256).ff_width == 1024
    assert TransformerConfig(d_model=256, activation="swiglu").ff_width == 704  # 682.7 -> 11 * 64
    assert TransformerConfig(d_model=96, activation="swiglu").ff_width == 256  # exactly 8/3
    assert TransformerConfig(d_ff=100, activation="swiglu").ff_width == 100


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "not JSON"), ("[1]", "expected a JSON object, found list"), ('{"top_q": 1}', "top_p")],
)
def test_config_from_a_broken_file_names_it(tmp_path, content, message):
    path = tmp_path / "generation_config.json"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        GenerationConfig.from_file(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.catches("infinite_settings_pass")
@pytest.mark.parametrize(
    "name",
    ["attention_scale", "embedding_scale", "logit_scale", "logit_softcap", "final_softcap",
     "norm_eps", "rotary_base"],
)  # fmt: skip
def test_config_rejects_infinite_values(name):
    with pytest.raises(ConfigError, match=f"{name} must be a finite number .* not inf"):
        TransformerConfig(**{name: math.inf})


YARN = {"type": "yarn", "factor": 2.0, "original_max_seq_len": 64}
LLAMA3 = {"type": "llama3", "factor": 2.0, "original_max_seq_len": 64}


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"type": []}, r"must have a type, one of .*; not \[\]"),
        ({"factor": 2.0}, "must have a type, one of .*; not None"),
        ({"type": "linear"}, "linear needs factor"),
        ({"type": "linear", "factor": "2"}, "factor must be a number, not '2'"),
        ({"type": "linear", "factor": 0.5}, "factor must be at least 1, not 0.5"),
        ({"type": "linear", "factor": math.inf}, "factor must be a finite number .* not inf"),
        ({"type": "linear", "factor": math.nan}, "factor must be at least 1, not nan"),
        ({"type": "linear", "factor": 2, "beta_fast": 1}, "unknown 'beta_fast'; linear has"),
        (
            {"type": "dynamic", "factor": 2, "original_max_seq_len": 0},
            "original_max_seq_len must be at least 1, not 0",
        ),
        ({**YARN, "original_max_seq_len": 0}, "original_max_seq_len must be at least 1, not 0"),
        ({**YARN, "beta_fast": 0}, "beta_fast must be above 0, not 0"),
        ({**YARN, "beta_slow": 0}, "beta_slow must be above 0, not 0"),
        ({**YARN, "beta_slow": 40}, "beta_slow must be below beta_fast=32.0, not 40"),
        (
            {**LLAMA3, "low_freq_factor": 4},
            "low_freq_factor must be below high_freq_factor=4.0, not 4",
        ),
        ({**LLAMA3, "low_freq_factor": 0}, "low_freq_factor must be above 0, not 0"),
    ],
)
def test_rope_scaling_rejects_invalid_settings(scaling, message):
    with pytest.raises(ConfigError, match=f"rotary_scaling:? {message}"):
        TransformerConfig(rotary_scaling=scaling)


def test_yarn_needs_a_rotary_base_above_1():
    with pytest.raises(ConfigError, match=r"yarn needs a rotary_base above 1, not 1\.0"):
        TransformerConfig(rotary_scaling=YARN, rotary_base=1.0)


@pytest.mark.parametrize("values", [[1], None, "d_model", 3])
def test_config_rejects_a_value_that_is_no_mapping(values):
    with pytest.raises(ConfigError, match="expected an object with fields by name, not"):
        TransformerConfig.from_dict(values)


def test_config_copies_given_mappings():
    scaling = dict(YARN)
    config = TransformerConfig(rotary_scaling=scaling)
    scaling["factor"] = -1
    assert config.rotary_scaling == YARN


def test_equal_configs_have_equal_hashes():
    first = TransformerConfig(rotary_scaling=YARN)
    second = TransformerConfig(rotary_scaling={**dict(reversed(YARN.items())), "factor": 2})
    assert first == second
    assert len({first, second, TransformerConfig(), TransformerConfig()}) == 2
    assert hash(first) != hash(TransformerConfig(rotary_scaling={**YARN, "factor": 3}))


@pytest.mark.parametrize(
    ("given_sizes", "message"),
    [
        ({"kind": "int4"}, r"unknown kind of cache 'int4' \(did you mean 'int8'\?\)"),
        ({"batch_size": -2}, "batch_size must be at least 1, not -2"),
        ({"seq_len": 0}, "seq_len must be at least 1, not 0"),
        ({"bytes_per_value": 0}, "bytes_per_value must be at least 1, not 0"),
        ({"source_len": 0}, "source_len must be at least 1, not 0"),
    ],
)
def test_cache_bytes_rejects_wrong_sizes(given_sizes, message):
    with pytest.raises(ConfigError, match=message):
        TransformerConfig().cache_bytes(**{"batch_size": 2, "seq_len": 8, **given_sizes})


@pytest.mark.parametrize("length", [-5, 0])
def test_flops_rejects_wrong_lengths(length):
    with pytest.raises(ConfigError, match=f"seq_len must be at least 1, not {length}"):
        TransformerConfig().flops_per_token(length)


@pytest.mark.catches("resolved_settings_have_no_reason")
def test_resolved_setting_has_its_reason():
    assert str(ResolvedSetting("lr", 0.005, "default of muon")) == "lr: 0.005 (default of muon)"


def test_part_of_a_config_has_its_fields_only():
    config = TrainConfig(train_path="a", devices=2, num_nodes=3, lr=0.1)
    hardware = config.part(HardwareSettings)
    assert hardware == HardwareSettings(devices=2, num_nodes=3)
    assert hardware.world_size == config.world_size == 6
    assert not hasattr(hardware, "lr")


@pytest.mark.parametrize("kind", registry.builtin_names("cache"))
def test_cache_kinds_of_config_can_be_built(kind):
    config = TransformerConfig(d_model=8, n_heads=2, n_layers=1, causal=True, sliding_window=2)
    assert Transformer(config).new_cache(1, 4, kind).nbytes == config.cache_bytes(1, 4, kind=kind)


@pytest.mark.catches("unknown_keyword_is_a_type_error")
@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        (TransformerConfig, {"dropuot": 0.1}, "unknown field 'dropuot' (did you mean 'dropout'?)"),
        (TrainConfig, {"train_path": "a", "lrr": 1}, "unknown field 'lrr' (did you mean 'lr'?)"),
        (GenerationConfig, {"temprature": 1}, "(did you mean 'temperature'?)"),
        (TrainConfig, {"warm_start": {}}, "warm_start is the former name of pretrain"),
    ],
)
def test_config_names_the_nearest_field_of_a_keyword(config, values, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        config(**values)


@pytest.mark.catches("value_given_at_its_default_is_not_given")
def test_given_fields_are_those_of_the_call():
    config = TrainConfig("a.jsonl", weight_decay=0.1, val_path=None, lr=0.5)
    expected = {"train_path": "a.jsonl", "weight_decay": 0.1, "lr": 0.5}
    assert config.given_fields() == expected
    assert config.non_default_fields() == {"train_path": "a.jsonl", "lr": 0.5}
    for copied in (pickle.loads(pickle.dumps(config)), copy.deepcopy(config)):
        assert copied == config
        assert copied.given_fields() == expected
    assert TrainConfig.from_dict(expected).given_fields() == expected
    # A copy has all fields, so that only changed ones count.
    changed = {"train_path": "a.jsonl", "lr": 0.1}
    assert dataclasses.replace(config, lr=0.1).given_fields() == changed


def test_subclass_with_arguments_of_its_own_is_made():
    class Doubled(GenerationConfig):
        def __init__(self, monitor, *, half):
            super().__init__(max_new_tokens=2 * half)

    config = Doubled("monitor", half=4)
    assert config.max_new_tokens == 8
    assert config.given_fields() == {"max_new_tokens": 8}
