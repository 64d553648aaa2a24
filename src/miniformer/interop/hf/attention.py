"""Rotations and sliding windows in a `config.json`, which take several keys and have changed.

transformers 5 writes `rope_parameters`, with one entry for each type of layer where they differ;
before that there were `rope_theta`, `rope_scaling` and keys of single families. Both are read; what
is written holds both, so that older readers have their own.
"""

from __future__ import annotations

from typing import Any

from miniformer.config import TransformerConfig, UserError
from miniformer.config.model_checks import ROTARY_SCALINGS
from miniformer.interop.hf.configs import Config, Reader, Writer

_FULL, _SLIDING = "full_attention", "sliding_attention"
# type of scaling -> their setting -> ours
_ROPE_SCALING_KEYS: dict[str, dict[str, str]] = {
    "linear": {"factor": "factor"},
    "dynamic": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "original_max_position_embeddings": "original_max_seq_len",
    },
    "longrope": {
        "factor": "factor",
        "original_max_position_embeddings": "original_max_seq_len",
        "short_factor": "short_factors",
        "long_factor": "long_factors",
        "attention_factor": "attention_factor",
    },
    "yarn": {
        "factor": "factor",
        "original_max_position_embeddings": "original_max_seq_len",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "attention_factor": "attention_factor",
    },
}
# What stands beside a scaling, and the length that transformers adds to all of them.
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
    """Reads one rotation for all layers.

    Args:
        base: where a file says none.
        partial: whether a part of a head may be left as it is.
        share: the part of a head that is rotated, where a file says none.
        keys: older keys of the base.
    """

    def read(config: Config, fields: Config) -> None:
        given = _get_rope_parameters(config)
        old = next((config[key] for key in keys if key in config), base)
        fields["rotary_base"] = given.get("rope_theta", old)
        old = config.get("partial_rotary_factor", config.get("rotary_pct", rotary_pct))
        share_of_head = given.get("partial_rotary_factor", old)
        width = fields.get("head_dim") or fields["d_model"] // fields["n_heads"]
        if share_of_head != 1 and not allow_partial:
            raise UserError(f"partial_rotary_factor={share_of_head} is not supported, only 1.0")
        if int(width * share_of_head) % 2:
            raise UserError(f"partial_rotary_factor={share_of_head} turns an odd part of {width}")
        fields["rotary_pct"] = share_of_head
        _read_rope_scaling(given, config, fields)

    return read


def read_dual_rope(*, base: float, local: float, keys: tuple[str, str]) -> Reader:
    """Reads the rotation of full layers and that of layers with a window.

    Args:
        base, local: where a file says none.
        keys: older keys of both.
    """

    def read(config: Config, fields: Config) -> None:
        given = config.get("rope_parameters") or {}
        if _FULL in given or _SLIDING in given:
            full, sliding = given.get(_FULL) or {}, given.get(_SLIDING) or {}
        else:
            full, sliding = _get_rope_parameters(config), {}
        if sliding.get("rope_type", "default") != "default":
            raise UserError(f"rope_parameters: scaled {_SLIDING} is not supported")
        fields["rotary_base"] = full.get("rope_theta", config.get(keys[0], base))
        fields["rotary_base_local"] = sliding.get("rope_theta", config.get(keys[1], local))
        _read_rope_scaling(full, config, fields)
        if fields.get("sliding_window") is None:  # no layer has it
            fields["rotary_base_local"] = None

    return read


def write_rope(config: TransformerConfig, theirs: Config) -> None:
    """Writes one rotation for all layers, in the new form and in the old one."""
    if config.rotary_pct != 1.0:
        theirs["partial_rotary_factor"] = config.rotary_pct
    theirs["rope_theta"] = config.rotary_base
    theirs["rope_parameters"] = _make_rope_parameters(config, theirs, config.rotary_base)
    _write_legacy_rope_scaling(theirs["rope_parameters"], theirs)


def write_dual_rope(keys: tuple[str, str], *, legacy_scaling: bool = True) -> Writer:
    """Writes the rotation of full layers and that of layers with a window.

    Args:
        keys: older keys of both bases.
        old: whether an older `rope_scaling` is that of full layers only (Gemma 3).
    """

    def write(config: TransformerConfig, theirs: Config) -> None:
        local = config.rotary_base_local or config.rotary_base
        theirs[keys[0]], theirs[keys[1]] = config.rotary_base, local
        theirs["rope_parameters"] = {
            _FULL: _make_rope_parameters(config, theirs, config.rotary_base),
            _SLIDING: {"rope_type": "default", "rope_theta": local},
        }
        if legacy_scaling:
            _write_legacy_rope_scaling(theirs["rope_parameters"][_FULL], theirs)

    return write


def read_sliding_window(kind: str, default: int | None = None) -> Reader:
    """Reads which layers have a sliding window.

    Args:
        kind: what a file without `layer_types` means: all (Mistral), late (Qwen: those from
            `max_window_layers` on), period (every n-th layer sees everything, the last of its
            group: Gemma), first (the first of its group: ModernBERT).
        default: the window where a file says none.
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
            letters = "".join("L" if each == _SLIDING else "G" for each in types)
        if window is None and "L" in letters and types is not None and kind != "all":
            raise UserError("layer_types names sliding layers, but there is no sliding_window")
        if window is None or "L" not in letters:
            fields["sliding_window"] = fields["window_pattern"] = None
            return
        fields["sliding_window"] = window
        fields["window_pattern"] = _shortest_period(letters) if "G" in letters else None

    return read


def write_sliding_window(kind: str) -> Writer:
    """Writes which layers have a sliding window; see `read_windows`."""

    def write(config: TransformerConfig, theirs: Config) -> None:
        windows = [config.layer_window(layer) for layer in range(config.n_layers)]
        window = next((each for each in windows if each is not None), None)
        if kind == "late":
            theirs["use_sliding_window"] = window is not None
            theirs["max_window_layers"] = windows.index(window) if window else config.n_layers
        if kind == "first":
            theirs["local_attention"] = window or 128
        else:  # Gemma's must be there even if no layer has it
            theirs["sliding_window"] = window or (4096 if kind == "period" else None)
        if kind != "all":
            theirs["layer_types"] = [_FULL if each is None else _SLIDING for each in windows]

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
    """The shortest pattern that repeats to these letters."""
    for length in range(1, len(letters) + 1):
        if (letters[:length] * (len(letters) // length + 1))[: len(letters)] == letters:
            return letters[:length]
    return letters


def _get_rope_parameters(config: Config) -> Config:
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(given, dict):
        raise UserError(f"rope_parameters must be an object, not {given!r}")
    return given


def _read_rope_scaling(rope_parameters: Config, config: Config, fields: Config) -> None:
    kind = rope_parameters.get("rope_type", rope_parameters.get("type", "default"))
    kind = "longrope" if kind == "su" else kind  # as Phi-3's first files call it
    if kind == "default":
        return
    if not isinstance(kind, str) or kind not in _ROPE_SCALING_KEYS:
        raise UserError(f"rope_type={kind!r} is none of default, {', '.join(_ROPE_SCALING_KEYS)}")
    names = _ROPE_SCALING_KEYS[kind]
    length = config.get("max_position_embeddings")
    strange = [
        name for name in rope_parameters if name not in names and name not in _NON_SCALING_KEYS
    ]
    if strange == ["truncate"] and rope_parameters["truncate"] is True:  # yarn's usual rounding
        strange = []
    if strange:
        raise UserError(
            f"rope_parameters: {strange[0]}={rope_parameters[strange[0]]!r} is not supported"
        )
    scaling: dict[str, Any] = {"type": kind}
    for theirs, ours in names.items():
        if rope_parameters.get(theirs) is not None:
            scaling[ours] = rope_parameters[theirs]
    if kind in ("dynamic", "yarn"):
        scaling.setdefault("original_max_seq_len", length)
    if kind == "longrope":
        original = config.get("original_max_position_embeddings", length)
        scaling.setdefault("original_max_seq_len", original)
        scaling.setdefault("factor", max(1.0, length / scaling["original_max_seq_len"]))
    fields["rotary_scaling"] = scaling
    if kind == "dynamic":  # theirs says how long a text was in training
        fields["max_seq_len"] = int(length * scaling["factor"])


def _write_legacy_rope_scaling(parameters: Config, theirs: Config) -> None:
    """What was `rope_scaling` before transformers 5, which had base and share beside it."""
    if parameters["rope_type"] != "default":
        beside = ("rope_theta", "partial_rotary_factor")
        theirs["rope_scaling"] = {k: v for k, v in parameters.items() if k not in beside}


def _make_rope_parameters(config: TransformerConfig, theirs: Config, base: float) -> Config:
    made: Config = {"rope_type": "default", "rope_theta": base}
    if config.rotary_pct != 1.0:
        made["partial_rotary_factor"] = config.rotary_pct
    if config.rotary_scaling is None:
        return made
    kind = config.rotary_scaling["type"]
    scaling = {**ROTARY_SCALINGS[kind], **config.rotary_scaling}
    made["rope_type"] = kind
    for name, ours in _ROPE_SCALING_KEYS[kind].items():
        if scaling[ours]:  # an attention factor of 0 follows from the factor
            made[name] = scaling[ours]
    if kind == "longrope":
        theirs["original_max_position_embeddings"] = scaling["original_max_seq_len"]
    if kind == "dynamic":
        theirs["max_position_embeddings"] = scaling["original_max_seq_len"]
    return made
