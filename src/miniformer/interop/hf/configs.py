"""Conversion of a family's `config.json` to and from `TransformerConfig` fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from miniformer.config import ConfigError, TransformerConfig, UserError
from miniformer.config.architectures import ARCHITECTURES, SEQ2SEQ_ARCHITECTURES
from miniformer.config.model_checks import ROTARY_SCALINGS
from miniformer.interop.hf.weights import NameTable, Rule, make_rules

REQUIRED = object()
_MAX_LAYERS = 10_000  # limit for untrusted files: memory use grows with each layer

Config = dict[str, Any]
Reader = Callable[[Config, Config], None]  # (config.json, fields); adds to the fields
Writer = Callable[[TransformerConfig, Config], None]  # (config, config.json); adds to the latter


@dataclasses.dataclass(frozen=True)
class ConfigKey:
    """Maps a key of a `config.json` to a `TransformerConfig` field.

    Args:
        hf_key: the key.
        field: the field.
        default: value of a missing key, as in transformers; REQUIRED: the key is required.
        value_map: value of the key -> value of the field; None: equal values.
        nullable: true if the key may be null.
    """

    hf_key: str
    field: str
    default: Any = REQUIRED
    value_map: Mapping[Any, Any] | None = None
    nullable: bool = False

    def read(self, config: Config) -> Any:
        """Reads the field's value.

        Raises:
            UserError: the key is missing, or its value is unknown.
        """
        value = config.get(self.hf_key, self.default)
        if value is REQUIRED:
            raise UserError(f"{self.hf_key} is missing")
        if value is None and not self.nullable:
            raise UserError(f"{self.hf_key} must not be null")
        if self.value_map is None:
            return value
        if not isinstance(value, str | bool | int | None) or value not in self.value_map:
            known = ", ".join(map(repr, self.value_map))
            raise UserError(f"{self.hf_key}={value!r} is none of {known}")
        return self.value_map[value]

    def write(self, value: Any) -> Any:
        """The key's value; None: there is no such value."""
        if self.value_map is None:
            return value
        return next((key for key, own in self.value_map.items() if own == value), None)


@dataclasses.dataclass(frozen=True)
class ModelClass:
    """One of a family's classes: the backbone with a head.

    Args:
        fields: config fields of the class; an `output_dim` of None means the number of labels.
        weights: names of the head's weights.
        is_backbone: true for the backbone alone, whose files lack the prefix.
        per_token: true if the head classifies each token, not the pooled vector of a sequence.
    """

    fields: Config
    weights: NameTable = dataclasses.field(default_factory=dict)
    is_backbone: bool = False
    per_token: bool = False

    @property
    def is_classifier(self) -> bool:
        """True if the outputs are classes or a value."""
        return "output_dim" in self.fields


@dataclasses.dataclass(frozen=True)
class Family:
    """File format of a published architecture.

    Args:
        preset: its name in `miniformer.config.architectures`.
        model_type: its name in a `config.json`.
        keys: keys that map to one field each.
        model_classes: class name -> class, the main one first.
        weights: names of the backbone's weights.
        layer_weights: names of a layer's weights, without prefixes.
        layer_prefix: prefix of a layer's names in the checkpoint.
        prefix: prefix of the backbone's names, except in files of the backbone alone.
        fixed: keys with only one supported value, which is also their default.
        constants: keys without a field, and the value that an export writes.
        ids: keys of special token ids, with their defaults.
        read, write: conversions that `keys` cannot express.
        adapt_rule: changes a rule according to the config.
        tied_weights: name of a tensor -> names of tensors; it is a copy of the first one present.
        weight_only_fields: fields that depend on the weights, not on a key.
        ignored_suffixes: suffixes of names of buffers, which are not loaded.
        ignored_prefixes: prefixes of names of weights that are not loaded; a note lists them.
    """

    preset: str
    model_type: str
    keys: tuple[ConfigKey, ...]
    model_classes: dict[str, ModelClass]
    weights: NameTable
    layer_weights: NameTable = dataclasses.field(default_factory=dict)
    layer_prefix: str = ""
    prefix: str = "model."
    fixed: Config = dataclasses.field(default_factory=dict)
    constants: Config = dataclasses.field(default_factory=dict)
    ids: Config = dataclasses.field(default_factory=dict)
    read: tuple[Reader, ...] = ()
    write: tuple[Writer, ...] = ()
    adapt_rule: Callable[[TransformerConfig, Rule], Rule] | None = None
    tied_weights: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    weight_only_fields: tuple[str, ...] = ()
    ignored_suffixes: tuple[str, ...] = ()
    ignored_prefixes: tuple[str, ...] = ()

    @property
    def seq2seq(self) -> bool:
        """True if it has an encoder and a decoder."""
        return self.preset in SEQ2SEQ_ARCHITECTURES

    def weight_rules(self, name: str, config: TransformerConfig) -> list[Rule]:
        """Rules of one of its classes for a config."""
        rules = make_rules(self.weights)
        rules += make_rules(self.layer_weights, "layers.{}.", self.layer_prefix)
        rules += make_rules(self.model_classes[name].weights)
        if self.adapt_rule is None:
            return rules
        return [self.adapt_rule(config, rule) for rule in rules]


def read_fields(family: Family, config: Config) -> tuple[str, Config]:
    """Class name and config fields of a `config.json`.

    Raises:
        UserError: lists all missing keys and unsupported values.
    """
    problems = [
        f"{key}={config[key]!r} is not supported, only {value!r}"
        for key, value in family.fixed.items()
        if key in config and config[key] != value and config[key] is not None
    ]
    fields: Config = dict(ARCHITECTURES[family.preset])
    for key in family.keys:
        try:
            fields[key.field] = key.read(config)
        except UserError as error:
            problems.append(str(error))
    name = next(iter(family.model_classes))
    try:
        name = _class_name(family, config)
    except UserError as error:
        problems.append(str(error))
    layers = fields.get("n_layers")
    if isinstance(layers, int) and layers > _MAX_LAYERS:
        problems.append(f"a model of {layers} layers is not supported, only up to {_MAX_LAYERS}")
    if problems:
        raise UserError("; ".join(problems))
    model_class = family.model_classes[name]
    fields |= model_class.fields
    if model_class.is_classifier:
        fields["output_dim"] = _num_labels(config)
        for field in ("head_bias", "final_softcap", "logit_scale"):
            fields.pop(field, None)
    try:
        for reader in family.read:
            reader(config, fields)
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"not a {family.model_type} config: {error!r}") from None
    return name, fields


def to_config(fields: Config) -> TransformerConfig:
    """Builds the config.

    Raises:
        UserError: a field is invalid, or fields conflict.
    """
    try:
        return TransformerConfig.from_dict(fields)
    except ConfigError as error:
        raise UserError("; ".join(error.problems)) from None


def write_config(family: Family, name: str, config: TransformerConfig) -> tuple[Config, list[str]]:
    """Returns a `config.json`, and the fields or problems that prevent an export."""
    values = effective_fields(config)
    hf_config: Config = {"architectures": [name], "model_type": family.model_type}
    blocked = []
    # Fields without effect keep their value.
    plain = config.to_dict() | {name: value for name, value in values.items() if value is not None}
    for key in family.keys:
        hf_config[key.hf_key] = key.write(plain[key.field])
        if hf_config[key.hf_key] is None and not (key.nullable and plain[key.field] is None):
            blocked.append(key.field)
            hf_config[key.hf_key] = next(iter(key.value_map or [key.default]))
    if family.model_classes[name].is_classifier and config.output_dim is not None:
        hf_config["id2label"] = {str(index): f"LABEL_{index}" for index in range(config.output_dim)}
    hf_config |= family.fixed | family.constants
    for writer in family.write:
        writer(config, hf_config)
    try:
        reread = effective_fields(to_config(read_fields(family, hf_config)[1]))
    except UserError as error:
        return hf_config, [*blocked, str(error)]
    different = [
        field
        for field in values
        if values[field] != reread[field]
        and field not in family.weight_only_fields
        and not (field == "pooling" and family.model_classes[name].per_token)
    ]
    return hf_config, sorted({*blocked, *different})


def effective_fields(config: TransformerConfig) -> Config:
    """Fields with defaults filled in, and null for fields without effect on the outputs.

    Configs with equal effective fields have equal weights and outputs.
    """
    values = config.to_dict()
    values |= {
        "d_ff": config.ff_width,
        "n_kv_heads": config.kv_heads,
        "head_dim": config.head_width,
        "norm_placement": config.effective_norm_placement,
        "attention_bias": config.has_attention_bias,
        "qkv_bias": config.has_qkv_bias,
        "feed_forward_bias": config.has_feed_forward_bias,
        "norm_bias": config.has_norm_bias if config.norm == "layernorm" else None,
        "attention_scale": _rounded(config.attention_scale or config.head_width**-0.5),
        "embedding_scale": _rounded(config.embedding_scale or 1.0),
        "logit_scale": _rounded(config.logit_scale or 1.0),
        "window_pattern": None,
        "sliding_window": [config.layer_window(layer) for layer in range(config.n_layers)],
        "n_decoder_layers": config.decoder_layers,
        "head_activation": (config.head_activation or "gelu")
        if config.head == "masked_lm"
        else None,
        "output_bias": config.has_head_bias if config.output_dim is not None else None,
    }
    if config.rotary_scaling is not None:
        scaling = config.rotary_scaling
        values["rotary_scaling"] = {**ROTARY_SCALINGS[scaling["type"]], **scaling}
    values["rotary_pct"] = config.rotary_dim
    values["rotary_base_local"] = config.rotary_base_local or config.rotary_base
    no_effect = {"pre_norm", "dropout", "token_dropout"}
    if config.position != "rotary":
        no_effect |= {"rotary_pct", "rotary_base", "rotary_base_local", "rotary_scaling"}
    if not any(values["sliding_window"]):
        no_effect.add("rotary_base_local")
    if config.position != "t5_relative":
        no_effect |= {"relative_buckets", "relative_max_distance"}
    if config.position != "learned":
        no_effect.add("max_seq_len")
    if config.head == "linear" and config.input_dim is None:
        no_effect.add("bias")  # specific fields replace it
    no_effect |= {"pooling"} if config.output_dim is None else {"tie_embeddings", "head_bias"}
    return {name: None if name in no_effect else value for name, value in values.items()}


def _rounded(value: float) -> float:
    return float(f"{value:.12g}")


def _class_name(family: Family, config: Config) -> str:
    """Class name in `architectures`; the family's main class if it is missing."""
    names = config.get("architectures")
    if names is None:
        return next(iter(family.model_classes))
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
        raise UserError(f"architectures must be a list of one name, not {names!r}")
    name = _CLASS_ALIASES.get(names[0], names[0])
    if name not in family.model_classes:
        known = ", ".join(family.model_classes)
        raise UserError(f"architectures names {names[0]}, which is none of {known}")
    return name


# Classes that are loaded as another one; their additional head is ignored.
_CLASS_ALIASES = {"BertForPreTraining": "BertForMaskedLM"}


def _num_labels(config: Config) -> int:
    labels = config.get("id2label")
    count = config.get("num_labels", 2) if labels is None else labels
    count = len(count) if isinstance(count, dict) else count
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise UserError(f"id2label must name the labels, not {labels!r}")
    return count
