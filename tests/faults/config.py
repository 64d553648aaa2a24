"""Faults in `miniformer.config`, the registry and the settings of training."""

from tests.faults import fault


@fault("miniformer.registry:unknown_name_message")
def unknown_name_gets_no_suggestion(original):
    """The message for an unknown name does not suggest the closest one."""
    return lambda label, value, known: f"unknown {label} {value!r}"


@fault("miniformer.config.strict:StrictConfig.from_dict")
def unknown_keys_are_dropped(original):
    """Unknown keys are dropped silently."""

    def from_dict(cls, values, *, stored=False):
        import dataclasses

        known = {field.name for field in dataclasses.fields(cls)}
        if hasattr(values, "items"):
            values = {key: value for key, value in values.items() if key in known}
        return original(cls, values, stored=stored)

    return from_dict


@fault("miniformer.config.strict:number_problems")
def infinite_settings_pass(original):
    """Numbers without an upper limit may be infinite or NaN."""

    def number_problems(name, value, *, low=None, above=None, high=None):
        if not abs(value) < float("inf"):
            return []
        return original(name, value, low=low, above=above, high=high)

    return number_problems


@fault("miniformer.config.errors:ConfigError.__reduce__")
def error_of_another_process_loses_its_problems(original):
    """A ConfigError cannot be unpickled in another process."""
    return lambda self: (type(self), (str(self),))


@fault("miniformer.utils.units:parse_bytes")
def gigabytes_are_powers_of_1024(original):
    """GB are read as GiB."""

    def parse_bytes(text):
        import re

        return original(re.sub("([kmgt])b", r"\1ib", text.lower()))

    return parse_bytes


@fault("miniformer.training.tuning.data_defaults:size_for_tokens")
def little_data_gets_a_large_model(original):
    """Model sizes start at half of their token limits."""
    return lambda num_tokens: original(None if num_tokens is None else 2 * num_tokens)


@fault("miniformer.config.architectures:architecture_config")
def family_ignores_its_width(original):
    """Fields that depend on the width of an architecture are left out."""

    def architecture_config(name, **sizes):
        from miniformer.config.architectures import ARCHITECTURES

        original(name, **sizes)
        return {**ARCHITECTURES[name], **sizes}

    return architecture_config


@fault("miniformer.config.generation_config:GenerationConfig.eos_token_ids")
def stop_ids_end_nothing(original):
    """Only eos_id ends a generation."""
    return property(lambda self: [] if self.eos_id is None else [self.eos_id])


@fault("miniformer.config.model_checks:_head_problems")
def heads_need_not_divide_the_width(original):
    """Heads that do not divide the width are accepted."""
    return lambda config: []


@fault("miniformer.config.model_fields:ModelFields.layer_window")
def every_layer_has_the_window(original):
    """The window pattern is ignored."""
    return lambda self, layer: self.sliding_window


@fault("miniformer.config.model_config:TransformerConfig.num_params")
def tied_head_counts_twice(original):
    """A tied weight is counted as embedding and as head."""

    def num_params(self, *, seq2seq=False):
        tied = self.d_model * self.vocab_size * self.is_head_tied
        return original(self, seq2seq=seq2seq) + tied

    return num_params


@fault("miniformer.config.model_config:TransformerConfig.flops_per_token")
def operations_ignore_the_window(original):
    """FLOPs of attention ignore the sliding window."""

    def flops_per_token(self, seq_len=None, *, seq2seq=False):
        import dataclasses

        if self.sliding_window is not None:
            self = dataclasses.replace(self, sliding_window=10**6)
        return original(self, seq_len, seq2seq=seq2seq)

    return flops_per_token


@fault("miniformer.config.model_config:TransformerConfig.cache_bytes")
def int8_cache_is_counted_without_scales(original):
    """The scales of an int8 cache are not counted."""

    def cache_bytes(self, batch_size, seq_len, bytes_per_value=4, *, kind="full", source_len=None):
        if kind == "int8":
            kind, bytes_per_value = "full", 1
        return original(
            self, batch_size, seq_len, bytes_per_value, kind=kind, source_len=source_len
        )

    return cache_bytes


@fault("miniformer.config.model_config:TransformerConfig.num_params")
def a_tied_weight_is_counted_twice(original):
    """A tied head counts in addition to the embedding."""

    def num_params(self, *, seq2seq=False):
        tied = self.d_model * self.vocab_size if self.is_head_tied else 0
        return original(self, seq2seq=seq2seq) + tied

    return num_params


@fault("miniformer.config.model_config:TransformerConfig.forward_flops")
def the_head_reads_every_token(original):
    """FLOPs of the head count every token, predicted or not."""
    return lambda self, *, head_tokens=None, **work: original(self, **work)


@fault("miniformer.config.model_config:TransformerConfig.forward_flops")
def cross_attention_keys_are_those_of_targets(original):
    """Cross-attention counts as many source tokens as target tokens."""

    def forward_flops(self, *, tokens, target_tokens=0.0, **work):
        extra = 0
        if target_tokens:
            kv = 2 * self.d_model * self.kv_heads * self.head_width
            extra = 2 * self.decoder_layers * (target_tokens - tokens) * kv
        return original(self, tokens=tokens, target_tokens=target_tokens, **work) + extra

    return forward_flops


@fault("miniformer.training.setup.limits:unreachable_limit_warnings")
def limits_beyond_the_end_pass(original):
    """Limits beyond the end of a run cause no warning."""
    return lambda config, max_steps, num_validations=0: []


@fault("miniformer.config.strict:rename_keys")
def former_names_are_unknown(original):
    """A former name of a setting is an unknown name."""
    return lambda values, former_names, *, warn: (dict(values), [])


@fault("miniformer.config.strict:_warn_renamed")
def former_names_have_no_warning(original):
    """A former name is replaced silently."""
    return lambda former, current: None


@fault("miniformer.config.strict:rename_keys")
def former_name_wins_over_the_current_one(original):
    """A setting given under both names has the value of one of them."""
    return lambda values, former_names, *, warn: (
        original(values, former_names, warn=warn)[0],
        [],
    )


@fault("miniformer.train_config:TrainConfig.current_names")
def nested_former_names_stay(original):
    """Former names within task_config, model_config and pretrain are not replaced."""

    def current_names(cls, values, *, warn=True):
        from miniformer.config import StrictConfig

        return StrictConfig.current_names.__func__(cls, values, warn=warn)

    return current_names


@fault("miniformer.registry:current_name")
def former_registered_names_are_unknown(original):
    """A former name of a registered part is an unknown name."""
    return lambda kind, name: name


@fault("miniformer.config.strict:StrictConfig.from_dict")
def stored_former_names_warn(original):
    """Former names in files of earlier versions give warnings."""
    return lambda cls, values, *, stored=False: original(cls, values)


@fault("miniformer.config.generation_config:GenerationConfig.override")
def generation_options_have_no_former_names(original):
    """Former names of generation options are refused as unknown."""

    def override(self, options, *, stacklevel=3):
        import dataclasses

        known = {field.name for field in dataclasses.fields(self)}
        options = {key: value for key, value in options.items() if key in known}
        return original(self, options, stacklevel=stacklevel)

    return override


@fault("miniformer.config.renames:TRAIN_FIELDS")
def former_name_is_forgotten(original):
    """The table of former names lacks one."""
    return {name: original[name] for name in sorted(original)[1:]}


@fault("miniformer.config.train_settings:BudgetSettings.cross_check")
def times_in_other_forms_pass(original):
    """A time or a size in a form that is not known means no limit."""
    return lambda self: []


@fault("miniformer.config.model_settings:ModelSettings.cross_check")
def conflicts_of_initial_weights_pass(original):
    """Settings of the model that exclude each other are accepted."""
    return lambda self: []


@fault("miniformer.config.model_settings:ModelSettings.all_transforms")
def adapter_is_not_the_last_transform(original):
    """The adapter is applied before the base is rounded."""
    return lambda self: original(self)[::-1]


@fault("miniformer.config.optimization_settings:OptimizationSettings._schedulefree_problems")
def conflicts_of_an_averaging_optimizer_pass(original):
    """A schedule and averages of weights are accepted with an optimizer that averages itself."""
    return lambda self: []


@fault("miniformer.config.resolved:ResolvedSetting.__str__")
def resolved_settings_have_no_reason(original):
    """A setting that the run determined is shown without its reason."""
    return lambda self: f"{self.name}: {self.value}"


@fault("miniformer.config.strict:StrictConfig.__new__")
def unknown_keyword_is_a_type_error(original):
    """An unknown field in Python is a TypeError without the nearest name."""

    def new(cls, *args, **kwargs):
        return object.__new__(cls)

    return new


@fault("miniformer.config.strict:StrictConfig.given_fields")
def value_given_at_its_default_is_not_given(original):
    """A field that is given at its default is as one that is left out."""
    return lambda self: self.non_default_fields()


@fault("miniformer.config.flags.reference:_meanings")
def meaning_of_a_field_is_lost(original):
    """Descriptions of fields with a shared line of the docstring are empty."""
    return lambda config: dict(list(original(config).items())[1:])


@fault("miniformer.config.flags.reference:_with_reference")
def meaning_is_a_reference_to_a_class(original):
    """The description of a field names the class that describes it."""
    return lambda text, name, config: text


@fault("miniformer.train_config:TrainConfig._conflicts_between_parts")
def unknown_key_of_pretrain_is_found_late(original):
    """Keys of `pretrain` are checked after the data is read."""
    return lambda self: [x for x in original(self) if not x.startswith("pretrain: unknown")]


@fault("miniformer.config.model_checks:wide_feature_problems")
def wide_head_settings_are_not_checked(original):
    """Any list of objects is a wide head."""
    return lambda groups, *, reads_vectors, has_token_types: []
