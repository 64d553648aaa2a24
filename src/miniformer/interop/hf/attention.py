"""Rotary embeddings and sliding windows of a `config.json`, which take several keys.

transformers 5 writes `rope_parameters`, with an entry for each type of layer if they differ. Older
versions write `rope_theta`, `rope_scaling` and family-specific keys. Both forms are read; an export
writes both.
"""

from __future__ import annotations

from typing import Any

from miniformer.config import TransformerConfig, UserError
from miniformer.config.model_checks import ROTARY_SCALINGS
from miniformer.interop.hf.configs import Config, Reader, Writer

_FULL, _SLIDING = "full_attention", "sliding_attention"
_HF_NAMES = {
    "original_max_seq_len": "original_max_position_embeddings",
    "short_factors": "short_factor",
    "long_factors": "long_factor",
}
# type of scaling -> key of rope_parameters -> key of rotary_scaling
_ROPE_SCALING_KEYS = {
    kind: {_HF_NAMES.get(name, name): name for name in settings}
    for kind, settings in ROTARY_SCALINGS.items()
}
_ROPE_SCALING_KEYS["dynamic"] = {"factor": "factor"}
# Keys of rope_parameters that are not part of a scaling; transformers adds the last to each.
_NON_SCALING_KEYS = {
    *("rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned"),
    "original_max_position_embeddings",
}


def read_rope(
    *,
    base: float = 10000.0,
    allow_partial: bool = True,
    rotary_pct: float = 1.0,
    keys: tuple[str, ...] = ("rope_theta",),
) -> Reader:
    """Reads rotary embeddings with one base for all layers.

    Args:
        base: default base.
        allow_partial: accept a `partial_rotary_factor` below 1.
        rotary_pct: default `partial_rotary_factor`.
        keys: older keys of the base.
    """

    def read(config: Config, fields: Config) -> None:
        parameters = _get_rope_parameters(config)
        legacy_base = next((config[key] for key in keys if key in config), base)
        fields["rotary_base"] = parameters.get("rope_theta", legacy_base)
        legacy_pct = config.get("partial_rotary_factor", config.get("rotary_pct", rotary_pct))
        pct = parameters.get("partial_rotary_factor", legacy_pct)
        width = fields.get("head_dim") or fields["d_model"] // fields["n_heads"]
        if pct != 1 and not allow_partial:
            raise UserError(f"partial_rotary_factor={pct} is not supported, only 1.0")
        if int(width * pct) % 2:
            raise UserError(f"partial_rotary_factor={pct} rotates an odd part of {width}")
        fields["rotary_pct"] = pct
        _read_rope_scaling(parameters, config, fields)

    return read


def read_dual_rope(*, base: float, local: float, keys: tuple[str, str]) -> Reader:
    """Reads rotary embeddings with separate bases for full and sliding-window layers.

    Args:
        base, local: default bases.
        keys: older keys of both.
    """

    def read(config: Config, fields: Config) -> None:
        parameters = config.get("rope_parameters") or {}
        if _FULL in parameters or _SLIDING in parameters:
            full, sliding = parameters.get(_FULL) or {}, parameters.get(_SLIDING) or {}
        else:
            full, sliding = _get_rope_parameters(config), {}
        if sliding.get("rope_type", "default") != "default":
            raise UserError(f"rope_parameters: scaled {_SLIDING} is not supported")
        fields["rotary_base"] = full.get("rope_theta", config.get(keys[0], base))
        fields["rotary_base_local"] = sliding.get("rope_theta", config.get(keys[1], local))
        _read_rope_scaling(full, config, fields)
        if fields.get("sliding_window") is None:
            fields["rotary_base_local"] = None

    return read


def write_rope(config: TransformerConfig, hf_config: Config) -> None:
    """Writes rotary embeddings with one base, in the current and the legacy form."""
    if config.rotary_pct != 1.0:
        hf_config["partial_rotary_factor"] = config.rotary_pct
    hf_config["rope_theta"] = config.rotary_base
    hf_config["rope_parameters"] = _make_rope_parameters(config, hf_config, config.rotary_base)
    _write_legacy_rope_scaling(hf_config["rope_parameters"], hf_config)


def write_dual_rope(keys: tuple[str, str], *, legacy_scaling: bool = True) -> Writer:
    """Writes rotary embeddings with separate bases for full and sliding-window layers.

    Args:
        keys: older keys of both bases.
        legacy_scaling: also write `rope_scaling`, for full layers only (Gemma 3).
    """

    def write(config: TransformerConfig, hf_config: Config) -> None:
        local = config.rotary_base_local or config.rotary_base
        hf_config[keys[0]], hf_config[keys[1]] = config.rotary_base, local
        hf_config["rope_parameters"] = {
            _FULL: _make_rope_parameters(config, hf_config, config.rotary_base),
            _SLIDING: {"rope_type": "default", "rope_theta": local},
        }
        if legacy_scaling:
            _write_legacy_rope_scaling(hf_config["rope_parameters"][_FULL], hf_config)

    return write


def read_sliding_window(kind: str, default: int | None = None) -> Reader:
    """Reads the sliding window and its layers.

    Args:
        kind: layers with a window if `layer_types` is missing: all (Mistral), late (Qwen: from
            `max_window_layers` on), period (all but the last of each group: Gemma), first (all but
            the first of each group: ModernBERT).
        default: default window.
    """
    name = "local_attention" if kind == "first" else "sliding_window"

    def read(config: Config, fields: Config) -> None:
        layers = fields["n_layers"]
        window = config.get(name, default)
        if kind == "late" and not config.get("use_sliding_window", False):
            window = None
        types = config.get("layer_types")
        if types is None:
            letters = _default_window_pattern(kind, config, layers)
        elif len(types) != layers or set(types) - {_FULL, _SLIDING}:
            raise UserError(
                f"layer_types must be {_FULL} or {_SLIDING} for each of {layers} layers"
            )
        else:
            letters = "".join("L" if layer_type == _SLIDING else "G" for layer_type in types)
        if window is None and "L" in letters and types is not None and kind != "all":
            raise UserError("layer_types has sliding layers, but sliding_window is missing")
        if window is None or "L" not in letters:
            fields["sliding_window"] = fields["window_pattern"] = None
            return
        fields["sliding_window"] = window
        fields["window_pattern"] = _shortest_period(letters) if "G" in letters else None

    return read


def write_sliding_window(kind: str) -> Writer:
    """Writes the sliding window and its layers; see `read_sliding_window`."""

    def write(config: TransformerConfig, hf_config: Config) -> None:
        windows = [config.layer_window(layer) for layer in range(config.n_layers)]
        window = next((window for window in windows if window is not None), None)
        if kind == "late":
            hf_config["use_sliding_window"] = window is not None
            hf_config["max_window_layers"] = windows.index(window) if window else config.n_layers
        if kind == "first":
            hf_config["local_attention"] = window or 128
        else:  # Gemma needs a value even if no layer has a window
            hf_config["sliding_window"] = window or (4096 if kind == "period" else None)
        if kind != "all":
            hf_config["layer_types"] = [_FULL if size is None else _SLIDING for size in windows]

    return write


def _default_window_pattern(kind: str, config: Config, layers: int) -> str:
    if kind == "all":
        return "L" * layers
    if kind == "late":
        first = config.get("max_window_layers", 28)
        return "".join("L" if layer >= first else "G" for layer in range(layers))
    if kind == "first":
        every = config.get("global_attn_every_n_layers", 3)
        return "".join("L" if layer % every else "G" for layer in range(layers))
    every = config.get("sliding_window_pattern", config.get("_sliding_window_pattern"))
    every = every or (2 if config.get("model_type") == "gemma2" else 6)
    return "".join("L" if (layer + 1) % every else "G" for layer in range(layers))


def _shortest_period(letters: str) -> str:
    """The shortest pattern whose repetition gives `letters`."""
    for length in range(1, len(letters) + 1):
        if (letters[:length] * (len(letters) // length + 1))[: len(letters)] == letters:
            return letters[:length]
    return letters


def _get_rope_parameters(config: Config) -> Config:
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(parameters, dict):
        raise UserError(f"rope_parameters must be an object, not {parameters!r}")
    return parameters


def _read_rope_scaling(rope_parameters: Config, config: Config, fields: Config) -> None:
    kind = rope_parameters.get("rope_type", rope_parameters.get("type", "default"))
    kind = "longrope" if kind == "su" else kind  # in early files of Phi-3
    if kind == "default":
        return
    if not isinstance(kind, str) or kind not in _ROPE_SCALING_KEYS:
        raise UserError(f"rope_type={kind!r} is none of default, {', '.join(_ROPE_SCALING_KEYS)}")
    names = _ROPE_SCALING_KEYS[kind]
    length = config.get("max_position_embeddings")
    unknown = [
        name for name in rope_parameters if name not in names and name not in _NON_SCALING_KEYS
    ]
    if unknown == ["truncate"] and rope_parameters["truncate"] is True:  # the default of yarn
        unknown = []
    if unknown:
        raise UserError(
            f"rope_parameters: {unknown[0]}={rope_parameters[unknown[0]]!r} is not supported"
        )
    scaling: dict[str, Any] = {"type": kind}
    for hf_key, key in names.items():
        if rope_parameters.get(hf_key) is not None:
            scaling[key] = rope_parameters[hf_key]
    if kind in ("dynamic", "yarn"):
        scaling.setdefault("original_max_seq_len", length)
    if kind == "longrope":
        original = config.get("original_max_position_embeddings", length)
        scaling.setdefault("original_max_seq_len", original)
        scaling.setdefault("factor", max(1.0, length / scaling["original_max_seq_len"]))
    fields["rotary_scaling"] = scaling
    if kind == "dynamic":  # max_position_embeddings is the length in training
        fields["max_seq_len"] = int(length * scaling["factor"])


def _write_legacy_rope_scaling(parameters: Config, hf_config: Config) -> None:
    """Writes `rope_scaling`, the form before transformers 5, without base and rotary fraction."""
    if parameters["rope_type"] != "default":
        separate = ("rope_theta", "partial_rotary_factor")
        hf_config["rope_scaling"] = {k: v for k, v in parameters.items() if k not in separate}


def _make_rope_parameters(config: TransformerConfig, hf_config: Config, base: float) -> Config:
    parameters: Config = {"rope_type": "default", "rope_theta": base}
    if config.rotary_pct != 1.0:
        parameters["partial_rotary_factor"] = config.rotary_pct
    if config.rotary_scaling is None:
        return parameters
    kind = config.rotary_scaling["type"]
    scaling = {**ROTARY_SCALINGS[kind], **config.rotary_scaling}
    parameters["rope_type"] = kind
    for hf_key, key in _ROPE_SCALING_KEYS[kind].items():
        if scaling[key]:  # an attention factor of 0 means the default
            parameters[hf_key] = scaling[key]
    if kind == "longrope":
        hf_config["original_max_position_embeddings"] = scaling["original_max_seq_len"]
    if kind == "dynamic":
        hf_config["max_position_embeddings"] = scaling["original_max_seq_len"]
    return parameters
