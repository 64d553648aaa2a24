"""Conversion of decoding options to and from `generation_config.json`.

Each option of transformers is converted, has no effect on generated text, or is reported.
"""

from __future__ import annotations

import warnings
from typing import Any

from miniformer.config import GenerationConfig, NoEffectWarning, UserError
from miniformer.interop.hf.configs import Config
from miniformer.interop.hf.load import Checkpoint
from miniformer.interop.hf.metadata import (
    first_token_id,
    generation_token_id,
    read_special_token_ids,
)

# Option of both -> value without effect in transformers.
_COMMON_OPTIONS: dict[str, Any] = {
    "min_new_tokens": 0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "bad_words_ids": [],
    "num_return_sequences": 1,
    "stop_strings": [],
}
_SAMPLING_OPTIONS: dict[str, Any] = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
}
_BEAM_OPTIONS: dict[str, Any] = {
    "num_beams": 1,
    "length_penalty": 1.0,
}
_DEFAULT_TOP_K = 50  # the default of transformers
# Unsupported options that change generated text, with their value without effect.
_UNSUPPORTED: dict[str, Any] = {
    "begin_suppress_tokens": [],
    "constraints": [],
    "diversity_penalty": 0.0,
    "dola_layers": [],
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "exponential_decay_length_penalty": None,
    "force_words_ids": [],
    "forced_bos_token_id": None,
    "guidance_scale": 1.0,
    "max_time": None,
    "num_beam_groups": 1,
    "penalty_alpha": 0.0,
    "remove_invalid_values": False,
    "sequence_bias": {},
    "token_healing": False,
    "watermarking_config": None,
}
_UNSUPPORTED_SAMPLING: dict[str, Any] = {
    "num_beams": 1,
    "typical_p": 1.0,
    "top_h": None,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}
_UNSUPPORTED_BEAM: dict[str, Any] = {"renormalize_logits": False}
# Options that are read by name below.
_HANDLED_KEYS = {
    *("do_sample", "max_new_tokens", "max_length", "min_length", "suppress_tokens"),
    *("early_stopping", "forced_eos_token_id", "eos_token_id", "decoder_start_token_id"),
}
# Options of outputs and of speed, and ids of `config.json`; they do not change generated text.
_NO_EFFECT_KEYS = {
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
    *("return_dict_in_generate", "bos_token_id", "pad_token_id", "transformers_version"),
    *("use_cache", "cache_implementation", "cache_config", "max_cache_len", "low_memory"),
    *("compile_config", "disable_compile", "continuous_batching_config", "prefill_chunk_size"),
    *("use_mtp", "is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule"),
    *("assistant_confidence_threshold", "assistant_early_exit", "assistant_lookbehind"),
    *("target_lookbehind", "assistant_ensemble_weight", "speculation_type"),
    *("prompt_lookup_num_tokens", "max_matching_ngram_size"),
}
_OPTIONS = {**_COMMON_OPTIONS, **_SAMPLING_OPTIONS, **_BEAM_OPTIONS}
_ALL_UNSUPPORTED = {**_UNSUPPORTED, **_UNSUPPORTED_SAMPLING, **_UNSUPPORTED_BEAM}
_KNOWN_KEYS = {*_OPTIONS, *_ALL_UNSUPPORTED, *_HANDLED_KEYS, *_NO_EFFECT_KEYS}
# Options that transformers lacks, without effect by default; options of speed, which do not change
# generated text, are omitted.
_MINIFORMER_ONLY = (
    *("context_shift", "frequency_penalty", "presence_penalty", "regex", "choices", "json_schema"),
    *("logits_processors", "seed", "length_normalization", "num_beam_groups", "diversity_penalty"),
)


def from_hf_generation_config(checkpoint: Checkpoint) -> GenerationConfig:
    """Reads decoding options; a warning lists those that are not supported.

    Raises:
        UserError: a value is invalid.
    """
    hf_generation = _read_hf_generation(checkpoint)
    path = checkpoint.directory.path / "generation_config.json"
    try:
        values, not_applied = _convert_options(checkpoint, hf_generation)
        config = GenerationConfig.from_dict(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    ids = [("eos_token_id", token) for token in config.eos_token_ids]
    ids += [("bad_words_ids", token) for run in config.bad_words_ids or [] for token in run]
    for name, token in ids:
        if not 0 <= token < checkpoint.config.vocab_size:
            raise UserError(f"{path.parent}: {name}={token} is outside the vocabulary")
    if not_applied and (checkpoint.family.seq2seq or checkpoint.config.causal):
        settings = ", ".join(f"{name}={value!r}" for name, value in sorted(not_applied.items()))
        warnings.warn(
            f"{path}: {settings}: not applied by generation; an export writes it again",
            NoEffectWarning,
            stacklevel=2,
        )
    return config


def _read_hf_generation(checkpoint: Checkpoint) -> Config:
    """Reads `generation_config.json`, or the options that older files have in `config.json`."""
    options = checkpoint.directory.read_json("generation_config.json")
    if options is None:
        config = {**checkpoint.hf_config, **read_special_token_ids(checkpoint)}
        options = {name: config[name] for name in _KNOWN_KEYS if name in config}
    return {name: value for name, value in options.items() if value is not None}


def _convert_options(checkpoint: Checkpoint, hf_generation: Config) -> tuple[Config, Config]:
    """Fields of `GenerationConfig`, and the options that are not applied."""
    do_sample = hf_generation.get("do_sample") is True
    beam_search = not do_sample and hf_generation.get("num_beams", 1) != 1
    values: Config = {"temperature": 1.0 if do_sample else 0.0}
    eos = generation_token_id(checkpoint, "eos_token_id")
    eos_token_ids = [
        first_token_id(token_id)
        for token_id in (eos if isinstance(eos, list) else [eos])
        if token_id is not None
    ]
    values |= {
        "eos_id": next(iter(eos_token_ids), None),
        "stop_token_ids": eos_token_ids[1:] or None,
    }
    if do_sample:
        hf_generation = {"top_k": _DEFAULT_TOP_K, **hf_generation}
    for name, no_effect in _decoding_options(do_sample).items():
        if name in hf_generation and hf_generation[name] != no_effect:
            values[name] = hf_generation[name]
    if isinstance(values.get("stop_strings"), str):
        values["stop_strings"] = [values["stop_strings"]]
    vocab_size = checkpoint.config.vocab_size
    values["bad_words_ids"] = _bad_words_ids(hf_generation, eos_token_ids, vocab_size) or None
    not_applied = _unsupported_options(hf_generation, do_sample=do_sample, beam_search=beam_search)
    limits, unused_limits = _length_limits(checkpoint, hf_generation, beam_search=beam_search)
    return values | limits, not_applied | unused_limits


def _decoding_options(do_sample: bool) -> Config:
    return {**_COMMON_OPTIONS, **(_SAMPLING_OPTIONS if do_sample else _BEAM_OPTIONS)}


def _unsupported_options(hf_generation: Config, *, do_sample: bool, beam_search: bool) -> Config:
    """Options with an effect that are not supported."""
    unsupported = dict(_UNSUPPORTED)
    unsupported |= _UNSUPPORTED_SAMPLING if do_sample else {}
    unsupported |= _UNSUPPORTED_BEAM if beam_search else {}
    result = {
        name: hf_generation[name]
        for name in unsupported
        if name in hf_generation and hf_generation[name] != unsupported[name]
    }
    if beam_search and hf_generation.get("early_stopping", False) != "never":
        result["early_stopping"] = hf_generation.get("early_stopping", False)
    unknown = [
        name for name in hf_generation if name not in _KNOWN_KEYS and not name.startswith("_")
    ]
    return result | {name: hf_generation[name] for name in unknown}


def _bad_words_ids(hf_generation: Config, eos_token_ids: list[Any], vocab_size: int) -> list[Any]:
    """Token sequences that are never generated, without EOS, which transformers exempts."""
    bad_words, tokens = (hf_generation.get(k, []) for k in ("bad_words_ids", "suppress_tokens"))
    for name, value in (("bad_words_ids", bad_words), ("suppress_tokens", tokens)):
        if not isinstance(value, list):
            raise UserError(f"{name} must be a list, not {value!r}")
    bad_words = [ids for ids in bad_words if ids not in [[eos] for eos in eos_token_ids]]
    return bad_words + [[token] for token in map(first_token_id, tokens) if token < vocab_size]


def _length_limits(
    checkpoint: Checkpoint, hf_generation: Config, *, beam_search: bool
) -> tuple[Config, dict[str, Any]]:
    """Length limits, and those that are not applied.

    `max_length` and `min_length` of transformers include the decoder's start token or the prompt.
    """
    max_seq_len, not_applied = checkpoint.config.max_seq_len, {}
    max_new, min_new = (hf_generation.get(f"{end}_new_tokens") for end in ("max", "min"))
    for name in ("max_length", "min_length"):
        value = hf_generation.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, int):
            raise UserError(f"{name} must be an integer, not {value!r}")
    if checkpoint.family.seq2seq:
        if max_new is None and "max_length" in hf_generation:
            max_new = max(1, min(hf_generation["max_length"], max_seq_len) - 1)
        if min_new is None:
            min_new = max(0, hf_generation.get("min_length", 0) - 1)
    else:
        if max_new is None and "max_length" in hf_generation:
            not_applied["max_length"] = hf_generation["max_length"]
        if min_new is None and hf_generation.get("min_length", 0):
            not_applied["min_length"] = hf_generation["min_length"]
    forced_eos = hf_generation.get("forced_eos_token_id")
    if max_new is None:  # the default of transformers is 20
        max_new = max(min(50, max(1, max_seq_len // 2)), min_new if isinstance(min_new, int) else 0)
    elif forced_eos is not None and not beam_search and max_new != 1:
        max_new -= 1  # the last token is EOS, which is not part of the text
    elif forced_eos is not None:
        not_applied["forced_eos_token_id"] = forced_eos
    limits = {"max_new_tokens": max_new, "min_new_tokens": 0 if min_new is None else min_new}
    return limits, not_applied


def to_hf_generation_config(
    options: GenerationConfig, special_token_ids: Config, hf_metadata: Config
) -> Config:
    """A `generation_config.json`: that of the imported model, else the converted options.

    A warning lists options that transformers lacks.
    """
    if isinstance(hf_metadata.get("generation_config"), dict):
        return dict(hf_metadata["generation_config"])
    do_sample = options.temperature > 0 and options.num_beams == 1
    config: Config = {
        **{name: value for name, value in special_token_ids.items() if value is not None},
        "max_new_tokens": options.max_new_tokens,
        "do_sample": do_sample,
    }
    if options.stop_token_ids:
        config["eos_token_id"] = options.eos_token_ids
    if options.num_beams > 1:
        config["early_stopping"] = "never"
    for name, no_effect in _decoding_options(do_sample).items():
        value = getattr(options, name)
        if (do_sample and name in _SAMPLING_OPTIONS) or value not in (None, no_effect):
            config[name] = no_effect if value is None else value
    defaults = GenerationConfig()
    omitted = [
        f"{name}={getattr(options, name)!r}"
        for name in _MINIFORMER_ONLY
        if getattr(options, name) != getattr(defaults, name)
    ]
    if omitted:
        settings = ", ".join(omitted)
        warnings.warn(
            f"generation_config.json: {settings}: transformers has no such option; left out",
            NoEffectWarning,
            stacklevel=2,
        )
    return config
