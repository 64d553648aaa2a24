"""Faults in `miniformer.interop` and the files of imported models."""

from tests.faults import fault

# Weights.


@fault("miniformer.interop.hf.weights:interleaved_heads")
def heads_of_gpt_neox_are_taken_for_one(original):
    """Query, key and value of GPT-NeoX are not interleaved by head."""
    return lambda heads: original(1)


@fault("miniformer.interop.hf.weights:skip_leading_rows")
def positions_begin_with_those_of_padding(original):
    """The last rows of RoBERTa's positions are skipped instead of the first."""

    def skip_leading_rows(rows):
        return original(rows)._replace(split=lambda tensor, _: [tensor[:-rows]])

    return skip_leading_rows


@fault("miniformer.interop.hf.families.llama:PHI3")
def gate_of_phi3_is_its_up(original):
    """Phi-3's gate and up projection are swapped."""
    import dataclasses

    def swapped(config, rule):
        return dataclasses.replace(rule, names=rule.names[::-1]) if len(rule.names) == 2 else rule

    return dataclasses.replace(original, adapt_rule=swapped)


@fault("miniformer.interop.hf.families.gpt:GPT2")
def square_weights_of_gpt2_stay_transposed(original):
    """GPT-2's output projections are read as they are stored."""
    import dataclasses

    from miniformer.interop.hf.weights import IDENTITY

    def plain(config, rule):
        output = rule.hf_name.endswith("attn.c_proj")
        return dataclasses.replace(rule, layout=IDENTITY) if output else rule

    return dataclasses.replace(original, adapt_rule=plain)


@fault("miniformer.interop.hf.families.encoders:BERT")
def bert_classifies_by_the_mean(original):
    """BERT classifies the mean of all tokens, not the first token."""
    import dataclasses

    name = "BertForSequenceClassification"
    kind = original.model_classes[name]
    kind = dataclasses.replace(kind, fields={**kind.fields, "pooling": "mean"})
    return dataclasses.replace(original, model_classes={**original.model_classes, name: kind})


@fault("miniformer.interop.hf.families.seq2seq:T5")
def logits_of_t5_are_not_scaled(original):
    """T5's logits are never scaled."""
    import dataclasses

    def unscaled(config, fields):
        fields["logit_scale"] = None

    return dataclasses.replace(original, read=(*original.read, unscaled))


@fault("miniformer.interop.hf.families:get_family")
def gated_t5_passes_for_plain(original):
    """T5 v1.1 is read as T5."""

    def get_family(config):
        if config.get("model_type") == "t5":
            return original({**config, "feed_forward_proj": "relu"})
        return original(config)

    return get_family


@fault("miniformer.interop.hf.families.tables:GATED_ACTIVATIONS")
def gated_gelu_is_exact(original):
    """GeGLU's tanh approximation is read as the exact function."""
    return {**original, "gelu_pytorch_tanh": "geglu"}


@fault("miniformer.interop.hf.attention:read_rope")
def rotation_has_twice_the_base(original):
    """The base of a rotation is twice that of the config."""

    def read_rope(**options):
        read = original(**options)

        def with_base(config, fields):
            read(config, fields)
            if "rotary_base" in fields:
                fields["rotary_base"] *= 2

        return with_base

    return read_rope


@fault("miniformer.interop.hf.attention:read_sliding_window")
def windows_are_in_the_other_layers(original):
    """Layers with and without a window are swapped."""

    def read_sliding_window(kind, default=None):
        read = original(kind, default)

        def swapped(config, fields):
            read(config, fields)
            if fields["window_pattern"]:
                fields["window_pattern"] = fields["window_pattern"].translate(
                    str.maketrans("LG", "GL")
                )

        return swapped

    return read_sliding_window


# Errors and reports.


@fault("miniformer.interop.hf.load:_tensors_equal")
def untied_head_is_taken_for_tied(original):
    """A copy of a tensor is not compared with it."""
    return lambda first, second: True


@fault("miniformer.interop.hf.configs:write_config")
def any_model_fits_the_first_family(original):
    """Unsupported config fields do not prevent an export."""
    return lambda family, name, config: (original(family, name, config)[0], [])


@fault("miniformer.interop.hf.files:CheckpointDirectory.resolve_file")
def link_leads_out_of_the_directory(original):
    """A link in a directory may lead anywhere."""

    def resolve_file(self, name):
        path = self.path / name
        return path if path.exists() else original(self, name)

    return resolve_file


@fault("miniformer.interop.hf.metadata:_class_names")
def classes_are_numbered_anew(original):
    """Class names are not read."""
    return lambda hf_config, width: list(range(width))


@fault("miniformer.interop.hf.decoding:from_hf_generation_config")
def end_of_text_is_not_read(original):
    """EOS ids of a checkpoint are not read."""

    def from_hf_generation_config(checkpoint):
        import dataclasses

        return dataclasses.replace(original(checkpoint), eos_id=None, stop_token_ids=None)

    return from_hf_generation_config


@fault("miniformer.interop.hf.export:_denormalized_weight")
def regression_is_exported_in_standard_units(original):
    """An exported regression gives standardized values."""
    return lambda source, name: source.load_tensor(name)


@fault("miniformer.interop.hf.api:_model_card")
def imported_model_has_an_empty_card(original):
    """The card of an imported model is empty."""
    return lambda checkpoint: ""


@fault("miniformer.interop.lm_eval:MiniformerLM.loglikelihood")
def every_continuation_is_greedy(original):
    """Every continuation is reported as greedy."""

    def loglikelihood(self, requests, disable_tqdm=False):
        return [(total, True) for total, _ in original(self, requests, disable_tqdm)]

    return loglikelihood


# Files, token ids and decoding options.


@fault("miniformer.checkpoint.directory:tokenizer_files")
def chat_templates_dropped(original):
    """Chat templates are not copied."""

    def tokenizer_files(directory):
        return [name for name in original(directory) if not name.endswith(".jinja")]

    return tokenizer_files


@fault("miniformer.checkpoint.directory:TOKENIZER_FILES")
def tokenizer_files_dropped(original):
    """Only three of the tokenizer files are copied."""
    return original[:3]


@fault("miniformer.interop.hf.metadata:make_special_token_ids")
def special_ids_left_out(original):
    """A config leaves out special tokens that a model does not have."""

    def make_ids(family, hf_metadata, tokenizer, *, vocab_size, decoder_start_id):
        ids = original(
            family, hf_metadata, tokenizer,
            vocab_size=vocab_size, decoder_start_id=decoder_start_id,
        )  # fmt: skip
        return {name: value for name, value in ids.items() if value is not None}

    return make_ids


@fault("miniformer.interop.hf.metadata:make_special_token_ids")
def decoder_start_left_out(original):
    """A backbone with encoder and decoder has no decoder start token."""

    def make_ids(family, hf_metadata, tokenizer, *, vocab_size, decoder_start_id):
        ids = original(
            family, hf_metadata, tokenizer,
            vocab_size=vocab_size, decoder_start_id=decoder_start_id,
        )  # fmt: skip
        if not hf_metadata and tokenizer is None:
            ids.pop("decoder_start_token_id", None)
        return ids

    return make_ids


@fault("miniformer.interop.hf.configs:write_config")
def null_type_vocabulary(original):
    """A model without token types is written as a BERT of `type_vocab_size` null."""

    def write_config(family, name, config):
        hf_config, blocked = original(family, name, config)
        if config.token_types is None and "type_vocab_size" in hf_config:
            hf_config["type_vocab_size"] = None
            blocked = [item for item in blocked if item != "token_types" and " " not in item]
        return hf_config, blocked

    return write_config


@fault("miniformer.interop.hf.configs:read_fields")
def attention_bias_read_from_mlp_bias(original):
    """Attention has a bias where the feed-forward has one."""

    def read_fields(family, config):
        name, fields = original(family, config)
        if "mlp_bias" in config:
            fields["attention_bias"] = config["mlp_bias"]
        return name, fields

    return read_fields


@fault("miniformer.interop.hf.configs:read_fields")
def head_activation_is_gelu(original):
    """The masked-LM head has gelu for any config."""

    def read_fields(family, config):
        name, fields = original(family, config)
        fields.pop("head_activation", None)
        return name, fields

    return read_fields


@fault("miniformer.interop.hf.load:open_checkpoint")
def missing_tensors_unnamed(original):
    """The error of a missing tensor does not name it."""

    def open_checkpoint(path, *, overrides=None, custom_code="refuse"):
        from miniformer.config import UserError

        try:
            return original(path, overrides=overrides, custom_code=custom_code)
        except UserError as error:
            if "have no tensor" not in str(error):
                raise
            raise UserError(f"{path}: the files hold too few weights for the config") from None

    return open_checkpoint


@fault("miniformer.interop.hf.attention:_default_window_pattern")
def windows_of_older_files_are_a_layer_off(original):
    """A file without `layer_types` has its windows one layer later than its class means."""

    def default_window_pattern(kind, config, layers):
        letters = original(kind, config, layers)
        return letters if kind == "all" else letters[-1] + letters[:-1]

    return default_window_pattern


@fault("miniformer.interop.hf.attention:_default_window_pattern")
def first_layer_with_a_window_is_the_one_after(original):
    """`max_window_layers` of Qwen counts one layer too many without a window."""

    def default_window_pattern(kind, config, layers):
        if kind == "late":
            config = {**config, "max_window_layers": config.get("max_window_layers", 28) + 1}
        return original(kind, config, layers)

    return default_window_pattern


@fault("miniformer.interop.hf.attention:read_sliding_window")
def default_window_forgotten(original):
    """The class default of the sliding window is ignored."""

    def read_sliding_window(kind, default=None):
        return original(kind)

    return read_sliding_window


@fault("miniformer.interop.hf.attention:read_rope")
def partial_rotation_of_any_family(original):
    """Every family accepts partial rotary embeddings."""

    def read_rope(**options):
        return original(**{**options, "allow_partial": True})

    return read_rope


def _decoding(original, change):
    """`from_hf_generation_config` with its result changed."""

    def from_hf_generation_config(checkpoint):
        return change(original(checkpoint))

    return from_hf_generation_config


@fault("miniformer.interop.hf.decoding:from_hf_generation_config")
def suppressed_tokens_written(original):
    """Suppressed tokens of an imported config are generated."""
    import dataclasses

    def change(config):
        runs = [run for run in config.bad_words_ids or [] if len(run) > 1]
        return dataclasses.replace(config, bad_words_ids=runs or None)

    return _decoding(original, change)


@fault("miniformer.interop.hf.decoding:from_hf_generation_config")
def min_length_ignored(original):
    """`min_length` is ignored."""
    import dataclasses

    return _decoding(original, lambda config: dataclasses.replace(config, min_new_tokens=0))


@fault("miniformer.interop.hf.decoding:from_hf_generation_config")
def sampling_among_all_tokens(original):
    """Sampling without `top_k` is among all tokens, not among the 50 of transformers."""
    import dataclasses

    def change(config):
        return dataclasses.replace(config, top_k=None if config.top_k == 50 else config.top_k)

    return _decoding(original, change)


@fault("miniformer.interop.hf.decoding:from_hf_generation_config")
def decoding_settings_unreported(original):
    """Decoding settings that are not applied are not reported."""
    import warnings

    def from_hf_generation_config(checkpoint):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return original(checkpoint)

    return from_hf_generation_config


@fault("miniformer.interop.hf.metadata:make_special_token_ids")
def padding_of_the_tokenizer_passed_over(original):
    """The pad token of the tokenizer is ignored for the family's fixed pad token."""

    def make_ids(family, hf_metadata, tokenizer, *, vocab_size, decoder_start_id):
        if "pad_token_id" in family.fixed:
            tokenizer = None
        return original(
            family, hf_metadata, tokenizer,
            vocab_size=vocab_size, decoder_start_id=decoder_start_id,
        )  # fmt: skip

    return make_ids


@fault("miniformer.interop.hf.decoding:to_hf_generation_config")
def exports_lose_the_first_end(original):
    """With stop_token_ids an export loses eos_id."""

    def to_hf_generation_config(options, special_token_ids, hf_metadata):
        config = original(options, special_token_ids, hf_metadata)
        ids = options.stop_token_ids
        return {**config, "eos_token_id": ids} if ids else config

    return to_hf_generation_config


@fault("miniformer.interop.hf.api:resolve_directory")
def imports_are_of_the_latest_revision(original):
    """An import ignores the revision that is asked for."""
    return lambda name_or_path, revision=None: original(name_or_path)


@fault("miniformer.interop.hf.families.tables:encoder_classes")
def token_classes_are_of_the_pooled_text(original):
    """A classifier of tokens has the head of a classifier of texts."""
    import dataclasses

    def encoder_classes(name, masked_lm, classifier, **options):
        classes = original(name, masked_lm, classifier, **options)
        key = f"{name}ForTokenClassification"
        fields = {**classes[key].fields, "head": options["head"]}
        return {**classes, key: dataclasses.replace(classes[key], fields=fields)}

    return encoder_classes


@fault("miniformer.interop.hf.metadata:infer_task")
def imported_tags_are_of_the_last_token(original):
    """An imported model predicts the tag of the last token of a word."""

    def infer_task(checkpoint):
        task = original(checkpoint)
        return {**task, "word_pooling": "last"} if "word_pooling" in task else task

    return infer_task
