"""Conversion of a config to metadata keys of a GGUF file, and back.

Values are Python's: an int becomes uint32, a float float32, a list an array.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from miniformer.config import TransformerConfig, UserError
from miniformer.config.architectures import ARCHITECTURES as PRESETS
from miniformer.config.model_checks import ROTARY_SCALINGS
from miniformer.interop.gguf.families import POOLINGS, Architecture

Metadata = dict[str, Any]
_MAX_LAYERS = 10_000  # limit for untrusted files: memory use grows with each layer


def write_hyperparameters(item: Architecture, config: TransformerConfig) -> Metadata:
    """Keys of a config."""
    keys: Metadata = {
        "context_length": config.max_seq_len,
        "embedding_length": config.d_model,
        "block_count": config.n_layers,
        "feed_forward_length": config.ff_width,
        "attention.head_count": config.n_heads,
        "attention.head_count_kv": config.kv_heads,
        "vocab_size": config.vocab_size,
    }
    kind = "epsilon" if config.norm == "layernorm" else "rms_epsilon"
    keys[f"attention.layer_norm_{kind}"] = config.norm_eps
    if item.free_head_width:
        keys["attention.key_length"] = keys["attention.value_length"] = config.head_width
    if item.name == "gptneox":
        keys["use_parallel_residual"] = config.parallel_residual
    if item.encoder:
        keys["attention.causal"] = False
        keys["pooling_type"] = POOLINGS[config.pooling]
    if item.seq2seq:
        keys["attention.relative_buckets_count"] = config.relative_buckets
        keys["decoder_block_count"] = config.decoder_layers
    if config.position == "rotary":
        keys |= _write_rotary(config)
    keys |= _write_windows(item, config)
    for key, field in (("attn", "logit_softcap"), ("final", "final_softcap")):
        if getattr(config, field) is not None:
            keys[f"{key}_logit_softcapping"] = getattr(config, field)
    return {f"{item.name}.{key}": value for key, value in keys.items()}


def _write_rotary(config: TransformerConfig) -> Metadata:
    keys: Metadata = {
        "rope.dimension_count": config.rotary_dim,
        "rope.freq_base": config.rotary_base,
    }
    if config.rotary_scaling is None:
        return keys
    scaling = {**ROTARY_SCALINGS[config.rotary_scaling["type"]], **config.rotary_scaling}
    kind = scaling["type"]
    if kind == "llama3":  # a tensor holds it
        return keys
    keys["rope.scaling.type"] = kind
    if kind != "longrope":
        keys["rope.scaling.factor"] = float(scaling["factor"])
    if kind in ("yarn", "longrope"):
        keys["rope.scaling.original_context_length"] = scaling["original_max_seq_len"]
    if kind == "yarn":
        keys["rope.scaling.yarn_beta_fast"] = float(scaling["beta_fast"])
        keys["rope.scaling.yarn_beta_slow"] = float(scaling["beta_slow"])
        default = 0.1 * math.log(scaling["factor"]) + 1
        if scaling["attention_factor"]:
            # llama.cpp multiplies the default by it.
            keys["rope.scaling.attn_factor"] = scaling["attention_factor"] / default
    if kind == "longrope":
        original = max(scaling["original_max_seq_len"], 2)
        default = math.sqrt(1 + math.log(scaling["factor"]) / math.log(original))
        keys["rope.scaling.attn_factor"] = float(scaling["attention_factor"] or default)
    return keys


def _write_windows(item: Architecture, config: TransformerConfig) -> Metadata:
    if not item.windows or config.sliding_window is None:
        return {}
    windows = [config.layer_window(layer) is not None for layer in range(config.n_layers)]
    keys: Metadata = {
        "attention.sliding_window": config.sliding_window,
        "attention.sliding_window_pattern": windows,
    }
    if config.rotary_base_local is not None or item.name in ("gemma3", "modern-bert"):
        keys["rope.freq_base_swa"] = float(config.rotary_base_local or config.rotary_base)
    return keys


class Keys:
    """Checked reading of an architecture's metadata.

    Args:
        metadata: of an untrusted file.
        prefix: name of the architecture.
    """

    def __init__(self, metadata: Metadata, prefix: str) -> None:
        self.metadata, self.prefix = metadata, prefix

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive integer.

        Raises:
            UserError: it is missing without a default, or not such a number.
        """
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
            raise UserError(f"{self.prefix}.{key} must be a positive integer, not {value!r:.80}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number; that of the fewest digits with the same float32.

        Raises:
            UserError: it is missing without a default, or not such a number.
        """
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e30:
            raise UserError(f"{self.prefix}.{key} must be a number, not {value!r:.80}")
        if not math.isfinite(value):
            raise UserError(f"{self.prefix}.{key} must be finite, not {value!r}")
        return float(str(np.float32(value)))

    def text(self, key: str, default: str) -> str:
        """A string.

        Raises:
            UserError: it is not one.
        """
        value = self._get(key, default)
        if not isinstance(value, str):
            raise UserError(f"{self.prefix}.{key} must be a string, not {value!r:.80}")
        return value

    def has(self, key: str) -> bool:
        """True if the file has the key."""
        return f"{self.prefix}.{key}" in self.metadata

    def _get(self, key: str, default: Any) -> Any:
        value = self.metadata.get(f"{self.prefix}.{key}", default)
        if value is None:
            raise UserError(f"{self.prefix}.{key} is missing")
        return value


def read_hyperparameters(
    item: Architecture, metadata: Metadata, tensors: dict[str, tuple[int, ...]], vocab_size: int
) -> dict[str, Any]:
    """Fields of `TransformerConfig` of a file.

    Args:
        item: its architecture.
        metadata: its keys.
        tensors: shapes of its tensors by name.
        vocab_size: number of tokens.

    Raises:
        UserError: a key is missing or has an invalid value.
    """
    keys = Keys(metadata, item.name)
    fields: dict[str, Any] = dict(PRESETS[item.family.preset])
    fields |= {
        "vocab_size": vocab_size,
        "d_model": keys.integer("embedding_length"),
        "n_layers": keys.integer("block_count"),
        "n_heads": keys.integer("attention.head_count"),
        "d_ff": keys.integer("feed_forward_length"),
        "max_seq_len": keys.integer("context_length"),
        "dropout": 0.0,
    }
    if max(fields["n_layers"], keys.integer("decoder_block_count", 1)) > _MAX_LAYERS:
        raise UserError(f"more than {_MAX_LAYERS} layers are not supported")
    fields["n_kv_heads"] = keys.integer("attention.head_count_kv", fields["n_heads"])
    kind = "epsilon" if fields["norm"] == "layernorm" else "rms_epsilon"
    fields["norm_eps"] = keys.number(f"attention.layer_norm_{kind}")
    if item.free_head_width and keys.has("attention.key_length"):
        fields["head_dim"] = keys.integer("attention.key_length")
    width = fields.get("head_dim") or fields["d_model"] // fields["n_heads"]
    if width < 1:
        raise UserError(f"{item.name}.attention.head_count is larger than embedding_length")
    _read_layout(item, keys, tensors, fields)
    if fields.get("position") == "rotary":
        fields["rotary_base"] = keys.number("rope.freq_base", 10000.0)
        rotated = keys.integer("rope.dimension_count", width)
        fields["rotary_pct"] = 1.0 if rotated == width else rotated / width
        _read_scaling(keys, fields)
    if item.windows:
        _read_windows(item, keys, fields)
    else:  # llama.cpp has no window in these architectures
        fields |= {"sliding_window": None, "window_pattern": None}
    for key, field in (("attn", "logit_softcap"), ("final", "final_softcap")):
        if item.name in ("gemma2", "gemma3") and keys.has(f"{key}_logit_softcapping"):
            fields[field] = keys.number(f"{key}_logit_softcapping") or None
    return fields


def _read_layout(
    item: Architecture, keys: Keys, tensors: dict[str, tuple[int, ...]], fields: dict[str, Any]
) -> None:
    """Reads the fields of which parts there are."""
    if item.name == "gptneox":
        parallel = keys._get("use_parallel_residual", True)
        fields["parallel_residual"] = parallel is True
    if item.name in ("llama", "qwen2") and item.family.preset != "mistral":
        fields["attention_bias"] = "blk.0.attn_output.bias" in tensors
        fields["qkv_bias"] = "blk.0.attn_q.bias" in tensors
        fields["feed_forward_bias"] = "blk.0.ffn_up.bias" in tensors
    if item.name == "bert":
        types = tensors.get("token_types.weight")
        fields["token_types"] = None if types is None else types[0]
    if keys._get("attention.causal", not item.encoder) is item.encoder:
        kind = "an encoder" if item.encoder else "causal"
        raise UserError(f"{item.name}.attention.causal={item.encoder}: here the model is {kind}")
    if item.encoder:
        numbers = {number: pooling for pooling, number in POOLINGS.items()}
        number = keys._get("pooling_type", 1)
        if number in numbers:
            fields["pooling"] = numbers[number]
        fields |= {"head": "linear", "head_bias": False, "tie_embeddings": True}
    if item.seq2seq:
        fields["relative_buckets"] = keys.integer("attention.relative_buckets_count")
        fields["n_decoder_layers"] = keys.integer("decoder_block_count", fields["n_layers"])
        fields["logit_scale"] = None
    if item.name.startswith("gemma"):
        fields["embedding_scale"] = fields["d_model"] ** 0.5
        fields["attention_scale"] = item.large_scale(
            fields["n_layers"], fields["d_model"], fields["n_heads"]
        )


def _read_scaling(keys: Keys, fields: dict[str, Any]) -> None:
    kind = keys.text("rope.scaling.type", "none")
    if keys.has("rope.scale_linear") and keys.number("rope.scale_linear") not in (0.0, 1.0):
        raise UserError(f"{keys.prefix}.rope.scale_linear, of old files, is not supported")
    if not keys.has("rope.scaling.factor") and kind in ("none", "linear"):
        return
    if kind == "none":
        return
    if kind not in ("linear", "yarn", "longrope"):
        raise UserError(f"{keys.prefix}.rope.scaling.type={kind!r:.80} is not supported")
    scaling: dict[str, Any] = {"type": kind}
    if kind != "longrope":
        scaling["factor"] = keys.number("rope.scaling.factor")
    if kind != "linear":
        scaling["original_max_seq_len"] = keys.integer("rope.scaling.original_context_length")
    if kind == "yarn":
        for name in ("beta_fast", "beta_slow"):
            if keys.has(f"rope.scaling.yarn_{name}"):
                scaling[name] = keys.number(f"rope.scaling.yarn_{name}")
        if keys.has("rope.scaling.attn_factor"):
            default = 0.1 * math.log(max(scaling["factor"], 1.0)) + 1
            scaling["attention_factor"] = keys.number("rope.scaling.attn_factor") * default
    if kind == "longrope":
        scaling["factor"] = max(1.0, fields["max_seq_len"] / scaling["original_max_seq_len"])
        scaling["attention_factor"] = keys.number("rope.scaling.attn_factor", 1.0)
    fields["rotary_scaling"] = scaling


def _read_windows(item: Architecture, keys: Keys, fields: dict[str, Any]) -> None:
    if not keys.has("attention.sliding_window"):
        fields |= {"sliding_window": None, "window_pattern": None, "rotary_base_local": None}
        return
    fields["sliding_window"] = keys.integer("attention.sliding_window")
    pattern = keys.metadata.get(f"{item.name}.attention.sliding_window_pattern")
    if isinstance(pattern, list) and len(pattern) >= fields["n_layers"]:
        letters = "".join("L" if local else "G" for local in pattern[: fields["n_layers"]])
        fields["window_pattern"] = _shortest_period(letters)
    elif pattern is not None:
        raise UserError(
            f"{item.name}.attention.sliding_window_pattern={pattern!r:.80} is not supported, only "
            "a list with true or false for each layer"
        )
    if item.name == "gemma2":
        return
    local = 10000.0 if item.name == "gemma3" else fields["rotary_base"]
    fields["rotary_base_local"] = keys.number("rope.freq_base_swa", local)


def _shortest_period(letters: str) -> str:
    """The shortest pattern whose repetition gives `letters`."""
    for length in range(1, len(letters)):
        if (letters[:length] * (len(letters) // length + 1))[: len(letters)] == letters:
            return letters[:length]
    return letters
