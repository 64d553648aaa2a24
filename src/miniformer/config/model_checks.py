"""Cross-field checks of a TransformerConfig; each problem comes with its fix."""

from __future__ import annotations

import math
from typing import Any

from miniformer import registry
from miniformer.config.model_fields import ModelFields
from miniformer.config.strict import FLOAT32_MAX, number_problems

POOLINGS = ("mean", "max", "first", "last")
# type of rotary scaling -> setting -> default; None: required
ROTARY_SCALINGS: dict[str, dict[str, float | None]] = {
    "linear": {"factor": None},
    "dynamic": {"factor": None, "original_max_seq_len": None},
    "llama3": {
        "factor": None,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_seq_len": None,
    },
    "yarn": {
        "factor": None,
        "original_max_seq_len": None,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "attention_factor": 0.0,
    },
    "longrope": {
        "factor": None,
        "original_max_seq_len": None,
        "short_factors": None,
        "long_factors": None,
        "attention_factor": 0.0,
    },
}
_PER_PAIR_SETTINGS = ("short_factors", "long_factors")  # one number per rotated pair
_SCALING_LIMITS: dict[str, dict[str, float]] = {
    "factor": {"low": 1},
    "original_max_seq_len": {"low": 1},
    "low_freq_factor": {"above": 0},
    "high_freq_factor": {"above": 0},
    "beta_fast": {"above": 0},
    "beta_slow": {"above": 0},
    "attention_factor": {"low": 0},  # 0: derived from the factor
}
# The first must be below the second: a ramp runs between them.
_ASCENDING_SETTINGS = [("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")]
# Settings that have an effect only with a value of another setting.
_REQUIRED_SETTINGS = [
    (("rotary_pct", "rotary_base", "rotary_base_local", "rotary_scaling"), "position", "rotary"),
    (("relative_buckets", "relative_max_distance"), "position", "t5_relative"),
    (("head_bias", "logit_scale", "final_softcap"), "output_dim", None),
    (("embedding_scale",), "input_dim", None),
    (("head_activation",), "head", "masked_lm"),
]


# Settings of each type of features, with their defaults; None: must be given.
WIDE_FEATURES: dict[str, dict[str, Any]] = {
    "ngrams": {"size": None, "length": 3, "positions": False, "counts": False},
    "second_text": {"size": None},
    "characters": {"size": None, "length": 5, "vocab": None, "width": None},
    "numbers": {"size": None},
    "statistics": {"size": None},
    "kernels": {"size": None, "width": None, "dilations": None},
    "rbf": {"size": None, "gamma": 1.0, "of": None},  # of: another group
    "overlap": {"size": None, "vocab": None},
    "words": {"size": None},
}
_OF_VECTORS = ("numbers", "statistics", "kernels")  # the others: of token ids
_OF_PAIRS = ("overlap", "second_text")


def find_problems(config: ModelFields) -> list[str]:
    """Problems between fields; see `StrictConfig.cross_check`."""
    return [
        *_head_problems(config),
        *_input_problems(config),
        *_unused_setting_problems(config),
        *_rotary_scaling_problems(config),
        *_layer_problems(config),
        *wide_feature_problems(
            config.wide_head,
            reads_vectors=config.input_dim is not None,
            has_token_types=config.token_types is not None,
        ),
    ]


def _head_problems(config: ModelFields) -> list[str]:
    problems = []
    if config.head_dim is None and config.d_model % config.n_heads:
        problems.append(
            f"d_model={config.d_model} is not divisible by n_heads={config.n_heads}; "
            f"use d_model={-(-config.d_model // config.n_heads) * config.n_heads}, "
            "another n_heads, or set head_dim"
        )
    elif config.position == "rotary" and config.rotary_dim == 0:
        minimum = math.ceil(2 / config.head_width * 1000) / 1000
        problems.append(
            f"rotary_pct={config.rotary_pct} rotates no pair of a head of {config.head_width}; "
            + (f"use at least {minimum}, " if config.head_width > 1 else "use ")
            + "a wider head, or position='none'"
        )
    if config.n_heads % config.kv_heads:
        problems.append(
            f"n_kv_heads={config.n_kv_heads} does not divide n_heads={config.n_heads}; "
            "each key-value head serves a whole number of query heads"
        )
    return problems


def _input_problems(config: ModelFields) -> list[str]:
    if config.input_type == "features" and config.input_dim is None:
        return ["input=features needs input_dim, the width of the vectors"]
    if config.input_type == "tokens" and config.input_dim is not None:
        return [f"input_dim={config.input_dim} has no effect with input=tokens; leave one out"]
    if config.input_type != "tokens" and config.source_vocab_size is not None:
        return ["source_vocab_size is for sources of token ids; leave it out"]
    return []


def _unused_setting_problems(config: ModelFields) -> list[str]:
    defaults = {name: field.default for name, field in config.__dataclass_fields__.items()}
    problems = [
        f"{name}={getattr(config, name)!r} has no effect with "
        f"{required}={getattr(config, required)!r}; leave it out"
        for names, required, value in _REQUIRED_SETTINGS
        for name in names
        if getattr(config, name) != defaults[name]
        and getattr(config, required) != value
        and not _is_plugin_part(config, required)
    ]
    dependencies = (
        ("window_pattern", "sliding_window"),
        ("rotary_base_local", "sliding_window"),
        ("output_bias", "output_dim"),
        ("ordered_outputs", "output_dim"),
        ("wide_head", "output_dim"),
    )
    problems += [
        f"{name}={getattr(config, name)!r} needs {required}"
        for name, required in dependencies
        if getattr(config, name) not in (None, False) and getattr(config, required) is None
    ]
    if config.ordered_outputs and config.output_bias is False:
        problems.append("ordered_outputs has thresholds as its biases; leave output_bias out")
    return problems


def _is_plugin_part(config: ModelFields, field: str) -> bool:
    """Returns whether the field is a plugin's position type, which may read any setting."""
    return field == "position" and config.position not in registry.builtin_names("position")


def _rotary_scaling_problems(config: ModelFields) -> list[str]:
    settings: dict[str, Any] | None = config.rotary_scaling
    if settings is None:
        return []
    kind = settings.get("type")
    if not isinstance(kind, str) or kind not in ROTARY_SCALINGS:
        return [
            f"rotary_scaling must have a type, one of {', '.join(ROTARY_SCALINGS)}; not {kind!r}"
        ]
    known = ROTARY_SCALINGS[kind]
    problems = [
        f"rotary_scaling: unknown {name!r}; {kind} has {', '.join(known)}"
        for name in settings
        if name != "type" and name not in known
    ]
    values = {name: settings.get(name, default) for name, default in known.items()}
    for name, value in values.items():
        problems += _scaling_setting_problems(kind, name, value, config.rotary_dim // 2)
    if problems:
        return problems
    if config.rotary_dim < 4:
        problems.append("rotary_scaling needs at least two rotated pairs; widen the heads")
    if kind == "yarn" and config.rotary_base <= 1:
        problems.append(
            f"rotary_scaling: yarn needs a rotary_base above 1, not {config.rotary_base!r}"
        )
    for low, high in _ASCENDING_SETTINGS:
        if low in values and not values[low] < values[high]:  # type: ignore[operator]
            problems.append(
                f"rotary_scaling: {low} must be below {high}={values[high]!r}, not {values[low]!r}"
            )
    return problems


def _scaling_setting_problems(kind: str, name: str, value: Any, num_pairs: int) -> list[str]:
    if value is None:
        return [f"rotary_scaling: {kind} needs {name}"]
    if name in _PER_PAIR_SETTINGS:
        is_complete = isinstance(value, list) and len(value) == num_pairs
        if is_complete and all(map(_is_positive_number, value)):
            return []
        return [
            f"rotary_scaling: {name} must be {num_pairs} numbers above 0, one for each rotated pair"
        ]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return [f"rotary_scaling: {name} must be a number, not {value!r}"]
    return number_problems(f"rotary_scaling: {name}", value, **_SCALING_LIMITS[name])


def _is_positive_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 < value <= FLOAT32_MAX


def _layer_problems(config: ModelFields) -> list[str]:
    problems = []
    if not config.pre_norm and config.norm_placement not in (None, "post"):
        problems.append(
            f"pre_norm=false contradicts norm_placement={config.norm_placement!r}; leave one out"
        )
    if config.parallel_residual and config.effective_norm_placement != "pre":
        problems.append(
            "parallel_residual needs norms before the sub-layers, not "
            f"{config.effective_norm_placement!r}; set pre_norm=true or leave it out"
        )
    if not config.first_attention_norm and config.effective_norm_placement not in ("pre", "both"):
        problems.append(
            "first_attention_norm=false has no effect with norms "
            f"{config.effective_norm_placement!r}; leave it out"
        )
    exact = config.relative_buckets // 2  # distances below it may have a bucket of their own
    if config.position == "t5_relative" and config.relative_max_distance <= exact:
        problems.append(
            f"relative_max_distance={config.relative_max_distance} must be above {exact}, half of "
            "relative_buckets, which have one distance each"
        )
    poolings = config.pooling.split("+")
    if set(poolings) - set(POOLINGS) or len(set(poolings)) < len(poolings):
        problems.append(
            f"pooling must be one of {', '.join(POOLINGS)}, or several joined by +, not "
            f"{config.pooling!r}"
        )
    pattern = config.window_pattern
    if pattern is not None and (not pattern or set(pattern) - set("LG")):
        problems.append(f"window_pattern must be letters L and G, such as LLG, not {pattern!r}")
    return problems


def wide_feature_settings(group: dict[str, Any]) -> dict[str, Any]:
    """Settings of a group of features, with the defaults of those that are not given."""
    return {**WIDE_FEATURES[group["type"]], **group}


def wide_feature_problems(
    groups: list[dict[str, Any]] | None, *, reads_vectors: bool, has_token_types: bool
) -> list[str]:
    """Problems of the `wide_head` of a model config.

    Args:
        groups: the field.
        reads_vectors: inputs of the model are vectors, not token ids.
        has_token_types: the model has token types.
    """
    if groups is None:
        return []
    if not groups:
        return ["wide_head must have a group of features, or be null"]
    problems = [problem for group in groups for problem in _group_problems(group)]
    if problems:
        return problems
    if len(groups) > 1 and any(group["type"] == "words" for group in groups):
        return ["wide_head: words are features of tags, and must be the only group"]
    inputs = "vectors" if reads_vectors else "token ids"
    groups = [group.get("of", group) for group in groups]
    problems = [
        f"wide_head: {group['type']} has no effect on {inputs}; leave it out"
        for group in groups
        if (group["type"] in _OF_VECTORS) != reads_vectors
    ]
    if not reads_vectors and not has_token_types:
        problems += [
            f"wide_head: {group['type']} needs token_types, by which the texts of a pair differ"
            for group in groups
            if group["type"] in _OF_PAIRS
        ]
    return problems


def _group_problems(group: dict[str, Any]) -> list[str]:
    kind = group.get("type")
    if not isinstance(kind, str) or kind not in WIDE_FEATURES:
        return [f"wide_head must have types of {', '.join(WIDE_FEATURES)}, not {kind!r}"]
    known, problems = WIDE_FEATURES[kind], []
    for name, value in {**known, **group}.items():
        if name == "type":
            continue
        if name not in known:
            problems.append(f"wide_head: unknown {name!r}; {kind} has {', '.join(known)}")
        elif value is None:
            problems.append(f"wide_head: {kind} needs {name}")
        elif isinstance(known[name], bool):
            if not isinstance(value, bool):
                problems.append(f"wide_head: {name} must be true or false, not {value!r}")
        elif name == "of":
            is_plain = isinstance(value, dict) and value.get("type") != kind
            problems += (
                _group_problems(value)
                if is_plain
                else [f"wide_head: of must be a group of features, not {value!r}"]
            )
        elif isinstance(known[name], float):
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                problems.append(f"wide_head: {name} must be a number above 0, not {value!r}")
        elif isinstance(value, bool) or not isinstance(value, int) or value < 1:
            problems.append(f"wide_head: {name} must be an integer of at least 1, not {value!r}")
    return problems
