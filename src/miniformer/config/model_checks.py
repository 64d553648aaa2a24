"""What must hold between the fields of a TransformerConfig: each problem with its fix."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from miniformer import registry
from miniformer.config.strict import FLOAT32_MAX, number_problems

if TYPE_CHECKING:
    from miniformer.config.model_config import TransformerConfig

POOLINGS = ("mean", "max", "first", "last")
# type of rotary scaling -> its settings, and what those left out are
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
_PER_PAIR_SETTINGS = ("short_factors", "long_factors")  # a number for each rotated pair
_SCALING_LIMITS: dict[str, dict[str, float]] = {
    "factor": {"low": 1},
    "original_max_seq_len": {"low": 1},
    "low_freq_factor": {"above": 0},
    "high_freq_factor": {"above": 0},
    "beta_fast": {"above": 0},
    "beta_slow": {"above": 0},
    "attention_factor": {"low": 0},  # 0: it follows from the factor
}
# A ramp runs from one to the other.
_ASCENDING_SETTINGS = [("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")]
# A setting at another value than its default does something only beside another setting.
_REQUIRED_SETTINGS = [
    (("rotary_pct", "rotary_base", "rotary_base_local", "rotary_scaling"), "position", "rotary"),
    (("relative_buckets", "relative_max_distance"), "position", "relative"),
    (("head_bias", "logit_scale", "final_softcap"), "output_dim", None),
    (("embedding_scale",), "input_dim", None),
    (("head_activation",), "head", "masked_lm"),
]


def find_problems(config: TransformerConfig) -> list[str]:
    """Everything that is wrong between fields; see `StrictConfig.cross_check`."""
    return [
        *_head_problems(config),
        *_unused_setting_problems(config),
        *_rotary_scaling_problems(config),
        *_layer_problems(config),
    ]


def _head_problems(config: TransformerConfig) -> list[str]:
    found = []
    if config.head_dim is None and config.d_model % config.n_heads:
        found.append(
            f"d_model={config.d_model} is not divisible by n_heads={config.n_heads}; "
            f"use d_model={-(-config.d_model // config.n_heads) * config.n_heads}, "
            "another n_heads, or set head_dim"
        )
    elif config.position == "rotary" and config.rotary_dim == 0:
        least = math.ceil(2 / config.head_width * 1000) / 1000
        found.append(
            f"rotary_pct={config.rotary_pct} rotates no pair of a head of {config.head_width}; "
            + (f"use at least {least}, " if config.head_width > 1 else "use ")
            + "a wider head, or position='none'"
        )
    if config.n_heads % config.kv_heads:
        found.append(
            f"n_kv_heads={config.n_kv_heads} does not divide n_heads={config.n_heads}; "
            "each key-value head serves a whole number of query heads"
        )
    return found


def _unused_setting_problems(config: TransformerConfig) -> list[str]:
    defaults = {name: field.default for name, field in config.__dataclass_fields__.items()}
    found = [
        f"{name}={getattr(config, name)!r} has no effect with {other}={getattr(config, other)!r}; "
        "leave it out"
        for names, other, value in _REQUIRED_SETTINGS
        for name in names
        if getattr(config, name) != defaults[name]
        and getattr(config, other) != value
        and not _is_plugin_part(config, other)
    ]
    needs = (
        ("window_pattern", "sliding_window"),
        ("rotary_base_local", "sliding_window"),
        ("output_bias", "output_dim"),
    )
    found += [
        f"{name}={getattr(config, name)!r} needs {other}"
        for name, other in needs
        if getattr(config, name) is not None and getattr(config, other) is None
    ]
    return found


def _is_plugin_part(config: TransformerConfig, field: str) -> bool:
    """Whether the field names a position part that is not ours: it may read any setting."""
    return field == "position" and config.position not in registry.builtin_names("position")


def _rotary_scaling_problems(config: TransformerConfig) -> list[str]:
    given: dict[str, Any] | None = config.rotary_scaling
    if given is None:
        return []
    kind = given.get("type")
    if not isinstance(kind, str) or kind not in ROTARY_SCALINGS:
        return [
            f"rotary_scaling must have a type, one of {', '.join(ROTARY_SCALINGS)}; not {kind!r}"
        ]
    known = ROTARY_SCALINGS[kind]
    found = [
        f"rotary_scaling: unknown {name!r}; {kind} has {', '.join(known)}"
        for name in given
        if name != "type" and name not in known
    ]
    values = {name: given.get(name, default) for name, default in known.items()}
    for name, value in values.items():
        found += _scaling_setting_problems(kind, name, value, config.rotary_dim // 2)
    if found:
        return found
    if config.rotary_dim < 4:
        found.append("rotary_scaling needs at least two rotated pairs; widen the heads")
    if kind == "yarn" and config.rotary_base <= 1:
        found.append(
            f"rotary_scaling: yarn needs a rotary_base above 1, not {config.rotary_base!r}"
        )
    for low, high in _ASCENDING_SETTINGS:
        if low in values and not values[low] < values[high]:  # type: ignore[operator]
            found.append(
                f"rotary_scaling: {low} must be below {high}={values[high]!r}, not {values[low]!r}"
            )
    return found


def _scaling_setting_problems(kind: str, name: str, value: Any, pairs: int) -> list[str]:
    """What is wrong with one setting of a scaling by itself."""
    if value is None:
        return [f"rotary_scaling: {kind} needs {name}"]
    if name in _PER_PAIR_SETTINGS:
        fits = isinstance(value, list) and len(value) == pairs
        if fits and all(_is_positive_number(each) for each in value):
            return []
        wanted = f"{pairs} numbers above 0, one for each rotated pair"
        return [f"rotary_scaling: {name} must be {wanted}"]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return [f"rotary_scaling: {name} must be a number, not {value!r}"]
    return number_problems(f"rotary_scaling: {name}", value, **_SCALING_LIMITS[name])


def _is_positive_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 < value <= FLOAT32_MAX


def _layer_problems(config: TransformerConfig) -> list[str]:
    found = []
    if not config.pre_norm and config.norm_placement not in (None, "post"):
        found.append(
            f"pre_norm=false contradicts norm_placement={config.norm_placement!r}; leave one out"
        )
    if config.parallel_residual and config.effective_norm_placement != "pre":
        found.append(
            f"parallel_residual needs norms before the sub-layers, not {config.effective_norm_placement!r}; "
            "set pre_norm=true or leave it out"
        )
    if not config.first_attention_norm and config.effective_norm_placement not in ("pre", "both"):
        found.append(
            f"first_attention_norm=false has no effect with norms {config.effective_norm_placement!r}; "
            "leave it out"
        )
    near = config.relative_buckets // 2  # distances with a bucket of their own, at most
    if config.position == "relative" and config.relative_max_distance <= near:
        found.append(
            f"relative_max_distance={config.relative_max_distance} must be above {near}, half of "
            "relative_buckets, where near distances end"
        )
    parts = config.pooling.split("+")
    if set(parts) - set(POOLINGS) or len(set(parts)) < len(parts):
        found.append(
            f"pooling must be one of {', '.join(POOLINGS)}, or several joined by +, not "
            f"{config.pooling!r}"
        )
    pattern = config.window_pattern
    if pattern is not None and (not pattern or set(pattern) - set("LG")):
        found.append(f"window_pattern must be letters L and G, such as LLG, not {pattern!r}")
    return found
