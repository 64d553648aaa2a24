"""A family's `config.json`, read and written: which of its keys is which of our fields."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from miniformer.config import ConfigError, TransformerConfig, UserError
from miniformer.config.architectures import ARCHITECTURES, SEQ2SEQ_ARCHITECTURES
from miniformer.config.model_checks import ROTARY_SCALINGS
from miniformer.interop.hf.weights import Rule

REQUIRED = object()
_MAX_LAYERS = 10_000  # more than any model has; what a file claims is made up for each of them

Config = dict[str, Any]
Reader = Callable[[Config, Config], None]  # their config, our fields so far, which it adds to
Writer = Callable[[TransformerConfig, Config], None]  # our config, theirs so far


@dataclasses.dataclass(frozen=True)
class ConfigKey:
    """One key of a `config.json` and the field that it is.

    Args:
        theirs: the key.
        ours: the field.
        default: what it is where a file leaves it out, as in transformers; REQUIRED: none may.
        words: their value -> ours; None: they are the same.
        null: whether it may be null.
    """

    hf_key: str
    field: str
    default: Any = REQUIRED
    value_map: Mapping[Any, Any] | None = None
    nullable: bool = False

    def read(self, config: Config) -> Any:
        """Our value.

        Raises:
            UserError: there is none, or it is none that we know.
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
        """Their value; None: they have none for it."""
        if self.value_map is None:
            return value
        return next((theirs for theirs, ours in self.value_map.items() if ours == value), None)


@dataclasses.dataclass(frozen=True)
class ModelClass:
    """What a family's backbone is used for: one of its classes.

    Args:
        fields: our fields that make it; `output_dim` of None stands for the number of labels.
        rules: names of the head's weights.
        bare: whether it is the backbone alone, whose files leave the prefix out.
    """

    fields: Config
    rules: tuple[Rule, ...] = ()
    is_backbone: bool = False

    @property
    def is_classifier(self) -> bool:
        """Whether its outputs are classes or a value."""
        return "output_dim" in self.fields


@dataclasses.dataclass(frozen=True)
class Family:
    """A published architecture, as its files are.

    Args:
        preset: its name in `miniformer.config.architectures`.
        model_type: its name in a `config.json`.
        keys: keys that are a field of ours each.
        kinds: class name -> what it is for, the main one first.
        rules: names of the backbone's weights.
        prefix: what those names begin with, but in files of the backbone alone.
        fixed: keys that we have no choice for, with the value that they must have; a file that
            leaves one out has that value.
        written: keys that have no meaning here, and what is written for them.
        ids: its keys of special tokens, and the ids where a file leaves them out.
        read, write: what keys alone cannot say.
        adapt: changes rules to what a config says.
        copies: name of a tensor -> those of which the first that there is it is a copy of, if a
            file has it.
        free: our fields that no key tells, but the weights.
        buffers: endings of names in files that hold nothing learnt.
        left_out: beginnings of names whose weights we have no use for; a user is told.
    """

    preset: str
    model_type: str
    keys: tuple[ConfigKey, ...]
    model_classes: dict[str, ModelClass]
    rules: tuple[Rule, ...]
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
        """Whether it has an encoder and a decoder."""
        return self.preset in SEQ2SEQ_ARCHITECTURES

    def weight_rules(self, name: str, config: TransformerConfig) -> list[Rule]:
        """The rules for one of its classes and one config."""
        table = [*self.rules, *self.model_classes[name].rules]
        return (
            table if self.adapt_rule is None else [self.adapt_rule(config, rule) for rule in table]
        )


def read_fields(family: Family, config: Config) -> tuple[str, Config]:
    """The class that a `config.json` names, and our fields for it.

    Raises:
        UserError: with every problem: a key is missing, or says what we have no part for.
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
        problems.append(
            f"a model of {layers} layers is not supported, only of {_MAX_LAYERS} at most"
        )
    if problems:
        raise UserError("; ".join(problems))
    kind = family.model_classes[name]
    fields |= kind.fields
    if kind.is_classifier:
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
    """Our config.

    Raises:
        UserError: the fields are wrong, or do not go together.
    """
    try:
        return TransformerConfig.from_dict(fields)
    except ConfigError as error:
        raise UserError("; ".join(error.problems)) from None


def write_config(family: Family, name: str, config: TransformerConfig) -> tuple[Config, list[str]]:
    """Their config, and which of our fields stand in its way."""
    values = effective_fields(config)
    theirs: Config = {"architectures": [name], "model_type": family.model_type}
    blocked = []
    # What has no effect is written as it stands.
    plain = config.to_dict() | {name: value for name, value in values.items() if value is not None}
    for key in family.keys:
        theirs[key.hf_key] = key.write(plain[key.field])
        if theirs[key.hf_key] is None and not (key.nullable and plain[key.field] is None):
            blocked.append(key.field)
            theirs[key.hf_key] = next(iter(key.value_map or [key.default]))
    if family.model_classes[name].is_classifier and config.output_dim is not None:
        theirs["id2label"] = {str(index): f"LABEL_{index}" for index in range(config.output_dim)}
    theirs |= family.fixed | family.constants
    for writer in family.write:
        writer(config, theirs)
    try:
        back = effective_fields(to_config(read_fields(family, theirs)[1]))
    except UserError as error:
        return theirs, [*blocked, str(error)]
    different = [
        field
        for field in values
        if values[field] != back[field] and field not in family.weight_only_fields
    ]
    return theirs, sorted({*blocked, *different})


def effective_fields(config: TransformerConfig) -> Config:
    """The fields with every null filled in, and null where a field has no effect on the outputs.

    Two configs with the same have the same weights and the same arithmetic.
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
        no_effect.add("bias")  # what is left of it has a field of its own
    no_effect |= {"pooling"} if config.output_dim is None else {"tie_embeddings", "head_bias"}
    return {name: None if name in no_effect else value for name, value in values.items()}


def _rounded(value: float) -> float:
    return float(f"{value:.12g}")


def _class_name(family: Family, config: Config) -> str:
    """The class that a config names; the family's main one where it names none."""
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


# Classes whose heads are those of another, with a part more that we leave out.
_CLASS_ALIASES = {"BertForPreTraining": "BertForMaskedLM"}


def _num_labels(config: Config) -> int:
    labels = config.get("id2label")
    count = config.get("num_labels", 2) if labels is None else labels
    count = len(count) if isinstance(count, dict) else count
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise UserError(f"id2label must name the labels, not {labels!r}")
    return count
