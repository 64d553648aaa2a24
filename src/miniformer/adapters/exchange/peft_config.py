"""`adapter_config.json` of Hugging Face's peft, from and to the settings of an adapter."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from miniformer.adapters.settings import (
    METHODS,
    AdapterSettings,
    Ia3Settings,
    LoraSettings,
    make_settings,
    match_pattern,
    name_matches,
)
from miniformer.config import UserError

# Types that peft does not have; their options are keys of the file.
_OWN_TYPES = {"BOTTLENECK": "bottleneck", "BITFIT": "bitfit"}
# Options of LoRA that change what its tensors mean, each with the values that do not.
_UNSUPPORTED = {
    "bias": ("none", None), "lora_bias": (False, None), "layer_replication": (None,),
    "alora_invocation_tokens": (None,), "target_parameters": (None, []),
    "use_qalora": (False, None), "arrow_config": (None,), "use_bdlora": (None, False),
    "velora_config": (None,),
}  # fmt: skip
_PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
_NAME = re.compile(r"[\w.\-]+")


def to_peft_config(
    settings: AdapterSettings,
    targets: Sequence[str],
    modules: Sequence[str],
    base: str,
    known: Sequence[str] = (),
) -> dict[str, Any]:
    """Content of the file.

    Args:
        settings: settings of the adapter.
        targets: names of the modules that it changes.
        modules: names of the modules that it saves as a whole.
        base: name of the base.
        known: all modules that `targets` could name; ends of names are written if they suffice.
    """
    values: dict[str, Any] = {
        "base_model_name_or_path": base,
        "inference_mode": True,
        "modules_to_save": [*modules] or None,
        "peft_version": "0.21.2",
        "task_type": None,
    }
    if isinstance(settings, LoraSettings):
        doubled = settings.init == "pissa"
        ranks, alphas = (2, math.sqrt(2) if settings.rslora else 2) if doubled else (1, 1)
        with_product = [name for name in targets if settings.targets or name != "embedding"]
        return values | {
            "peft_type": "LORA",
            "r": settings.r * ranks,
            "lora_alpha": _number(settings.alpha * alphas),
            "lora_dropout": settings.dropout,
            "rank_pattern": {key: rank * ranks for key, rank in settings.rank_pattern.items()},
            "alpha_pattern": {
                key: _number(alpha * alphas) for key, alpha in settings.alpha_pattern.items()
            },
            "target_modules": shorten(with_product, known),
            "trainable_token_indices": settings.new_tokens or None,
            "use_rslora": settings.rslora,
            "use_dora": settings.dora,
            "bias": "none",
            "fan_in_fan_out": False,
            "init_lora_weights": True,
        }
    if isinstance(settings, Ia3Settings):
        inputs = [
            name
            for name in targets
            if any(name_matches(name, target) for target in settings.input_names)
        ]
        return values | {
            "peft_type": "IA3",
            "target_modules": shorten(targets, known),
            "feedforward_modules": shorten(inputs, known),
            "fan_in_fan_out": False,
            "init_ia3_weights": True,
        }
    options = settings.to_options()
    options.pop("modules_to_save", None)
    return values | {"peft_type": settings.method.upper(), **options}


def from_peft_config(
    values: Mapping[str, Any],
    targets: Mapping[str, int],
    inputs: Sequence[str],
    modules: Sequence[str],
    path: object,
) -> AdapterSettings:
    """Settings of an adapter.

    Args:
        values: content of the file.
        targets: modules with tensors by name, each with the rank of its product.
        inputs: those of IA3 whose inputs are scaled.
        modules: modules that are saved as a whole.
        path: the file, for messages.

    Raises:
        UserError: the type or an option is not supported, or does not fit the tensors.
    """
    kind = values.get("peft_type")
    kind = kind if isinstance(kind, str) else json.dumps(kind)
    if kind in _OWN_TYPES:
        method = _OWN_TYPES[kind]
        fields = {field.name for field in dataclasses.fields(METHODS[method])}
        options = {key: value for key, value in values.items() if key in fields}
        return make_settings(method, {**options, "modules_to_save": [*modules]})
    if kind == "IA3":
        outputs = [name for name in targets if name not in inputs]
        options = {"targets": outputs, "input_targets": [*inputs], "modules_to_save": [*modules]}
        return Ia3Settings(**options)
    if kind != "LORA":
        known = ", ".join(["LORA", "IA3", *_OWN_TYPES])
        raise UserError(f"{path}: peft_type is {kind!r}; this version reads {known}")
    for option, allowed in _UNSUPPORTED.items():
        if values.get(option) not in allowed:
            raise UserError(f"{path}: {option}={values[option]!r} is not supported")
    init = values.get("init_lora_weights", True)
    if init not in _PLAIN_INITS:
        raise UserError(
            f"{path}: init_lora_weights={init!r} changes the weights of the base; save the adapter "
            "in peft with path_initial_model_for_weight_conversion"
        )
    return _lora_settings(values, targets, modules, path)


def _lora_settings(
    values: Mapping[str, Any], targets: Mapping[str, int], modules: Sequence[str], path: object
) -> LoraSettings:
    patterns = {}
    for option in ("rank_pattern", "alpha_pattern"):
        pattern = values.get(option) or {}
        if not isinstance(pattern, dict):
            raise UserError(f"{path}: {option} must be an object, not {pattern!r}")
        patterns[option] = {_plain_name(key, option, path): x for key, x in pattern.items()}
    tokens = values.get("trainable_token_indices") or []
    if isinstance(tokens, dict):
        tokens = next(iter(tokens.values()), [])
    options = {
        "r": values.get("r", 8),
        "alpha": values.get("lora_alpha", 8),
        "dropout": values.get("lora_dropout", 0.0),
        "rslora": values.get("use_rslora", False),
        "dora": values.get("use_dora", False),
        "new_tokens": tokens,
        "modules_to_save": [*modules],
        "targets": [*targets],
    }
    settings = make_settings("lora", {**options, **patterns})
    assert isinstance(settings, LoraSettings)
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for name, rank in targets.items():
        if rank != settings.rank(name):
            raise UserError(
                f"{path}: the rank at {name} is {settings.rank(name)}, but its tensors have {rank}"
            )
        alpha = match_pattern(settings.alpha_pattern, name, settings.alpha)
        if rank != settings.r:
            ranks[name] = rank
        if alpha != settings.alpha:
            alphas[name] = alpha
    return dataclasses.replace(settings, rank_pattern=ranks, alpha_pattern=alphas)


def shorten(names: Sequence[str], known: Sequence[str]) -> list[str]:
    """The last parts of names, if they match no other module; else the names."""
    ends = sorted({name.rpartition(".")[2] for name in names})
    matched = [name for name in known if any(name_matches(name, end) for end in ends)]
    return ends if known and sorted(matched) == sorted(names) else [*names]


def _plain_name(key: str, option: str, path: object) -> str:
    """A key of a pattern as a name; peft's keys are regular expressions."""
    name = key.removeprefix("^").removesuffix("$").replace("\\.", ".")
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{path}: {option}: {key!r} is a regular expression; write the names of the modules"
        )
    return name


def _number(value: float) -> float:
    return int(value) if float(value).is_integer() else value
