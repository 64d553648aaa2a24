"""Decoding settings: `generation_config.json` in their words and in ours.

Each of their settings is applied here, or has no effect on what is written, or is reported.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from miniformer.config import GenerationConfig, NoEffectWarning, UserError
from miniformer.interop.hf.configs import Config
from miniformer.interop.hf.load import Checkpoint
from miniformer.interop.hf.metadata import (
    first_token_id,
    generation_token_id,
    read_special_token_ids,
)

# theirs -> ours, and the value that asks for nothing
_COMMON_OPTIONS: dict[str, tuple[str, Any]] = {
    "min_new_tokens": ("min_new_tokens", 0),
    "repetition_penalty": ("repetition_penalty", 1.0),
    "no_repeat_ngram_size": ("no_repeat_ngram_size", 0),
    "bad_words_ids": ("bad_words_ids", []),
    "num_return_sequences": ("num_return_sequences", 1),
    "stop_strings": ("stop_strings", []),
}
_SAMPLING_OPTIONS: dict[str, tuple[str, Any]] = {
    "temperature": ("temperature", 1.0),
    "top_k": ("top_k", 0),
    "top_p": ("top_p", 1.0),
    "min_p": ("min_p", 0.0),
}
_BEAM_OPTIONS: dict[str, tuple[str, Any]] = {
    "num_beams": ("num_beams", 1),
    "length_penalty": ("length_penalty", 1.0),
}
_DEFAULT_TOP_K = 50  # what transformers samples among where a file says nothing
# Settings that change what is written and that we do not have, and the value that asks for nothing.
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
# Read by name below.
_HANDLED_KEYS = {
    *("do_sample", "max_new_tokens", "max_length", "min_length", "suppress_tokens"),
    *("early_stopping", "forced_eos_token_id", "eos_token_id", "decoder_start_token_id"),
}
# What is returned, how it is computed, and ids that `config.json` has: the text is the same.
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
_SAMPLING_KEYS, _BEAM_KEYS = (
    {*_SAMPLING_OPTIONS, *_UNSUPPORTED_SAMPLING},
    {*_BEAM_OPTIONS, *_UNSUPPORTED_BEAM},
)
_KNOWN_KEYS = {
    *_COMMON_OPTIONS,
    *_UNSUPPORTED,
    *_HANDLED_KEYS,
    *_NO_EFFECT_KEYS,
    *_SAMPLING_KEYS,
    *_BEAM_KEYS,
}
# Ours that theirs have no word for, and the value that asks for nothing; those of speed are left
# out: the text is the same.
_MINIFORMER_ONLY: dict[str, Any] = {
    "context_shift": False,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "regex": None,
    "choices": None,
    "json_schema": None,
    "seed": None,
    "length_normalization": "tokens",
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
}


def from_hf_generation_config(checkpoint: Checkpoint) -> GenerationConfig:
    """Decoding settings, as far as ours have them; a warning names the others.

    Raises:
        UserError: a value is none that decoding can have.
    """
    given = _read_hf_generation(checkpoint)
    path = checkpoint.directory.path / "generation_config.json"
    try:
        values, reported = _convert_options(checkpoint, given)
        made = GenerationConfig.from_dict(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    named = [("eos_token_id", token) for token in made.eos_token_ids]
    named += [("bad_words_ids", token) for run in made.bad_words_ids or [] for token in run]
    for name, token in named:
        if not 0 <= token < checkpoint.config.vocab_size:
            raise UserError(f"{path.parent}: {name}={token} is outside the vocabulary")
    if reported and (checkpoint.family.seq2seq or checkpoint.config.causal):
        _warn_not_applied(path, reported)
    return made


def _read_hf_generation(checkpoint: Checkpoint) -> Config:
    """What their files say of decoding; older ones say it in `config.json`."""
    given = checkpoint.directory.read_json("generation_config.json")
    if given is None:
        told = {**checkpoint.hf_config, **read_special_token_ids(checkpoint)}
        given = {name: told[name] for name in _KNOWN_KEYS if name in told}
    return {name: value for name, value in given.items() if value is not None}


def _warn_not_applied(path: Path, not_applied: Mapping[str, Any]) -> None:
    settings = ", ".join(f"{name}={value!r}" for name, value in sorted(not_applied.items()))
    warnings.warn(
        f"{path}: {settings}: not applied when text is written here; an export writes it again",
        NoEffectWarning,
        stacklevel=2,
    )


def _convert_options(checkpoint: Checkpoint, hf_generation: Config) -> tuple[Config, Config]:
    """Our settings, and those of theirs that are not applied."""
    sampled = hf_generation.get("do_sample") is True
    searched = not sampled and hf_generation.get("num_beams", 1) != 1
    values: Config = {"temperature": 1.0 if sampled else 0.0}
    ends = generation_token_id(checkpoint, "eos_token_id")
    ends = [
        first_token_id(end)
        for end in (ends if isinstance(ends, list) else [ends])
        if end is not None
    ]
    values |= {"eos_id": ends[0] if ends else None, "stop_token_ids": ends[1:] or None}
    if sampled:
        hf_generation = {"top_k": _DEFAULT_TOP_K, **hf_generation}
    for theirs, (ours, nothing) in {
        **_COMMON_OPTIONS,
        **(_SAMPLING_OPTIONS if sampled else _BEAM_OPTIONS),
    }.items():
        if theirs in hf_generation and hf_generation[theirs] != nothing:
            values[ours] = hf_generation[theirs]
    if isinstance(values.get("stop_strings"), str):
        values["stop_strings"] = [values["stop_strings"]]
    values["bad_words_ids"] = (
        _bad_words_ids(hf_generation, ends, checkpoint.config.vocab_size) or None
    )
    reported = _unsupported_options(hf_generation, do_sample=sampled, beam_search=searched)
    lengths, unread = _length_limits(checkpoint, hf_generation, beam_search=searched)
    return values | lengths, reported | unread


def _unsupported_options(hf_generation: Config, *, do_sample: bool, beam_search: bool) -> Config:
    """Settings that are asked for and that ours do not have."""
    asks = dict(_UNSUPPORTED)
    asks |= _UNSUPPORTED_SAMPLING if do_sample else {}
    asks |= _UNSUPPORTED_BEAM if beam_search else {}
    found = {
        name: hf_generation[name]
        for name in asks
        if name in hf_generation and hf_generation[name] != asks[name]
    }
    if beam_search and hf_generation.get("early_stopping", False) != "never":
        found["early_stopping"] = hf_generation.get("early_stopping", False)
    strange = [
        name for name in hf_generation if name not in _KNOWN_KEYS and not name.startswith("_")
    ]
    return found | {name: hf_generation[name] for name in strange}


def _bad_words_ids(hf_generation: Config, eos_token_ids: list[Any], vocab_size: int) -> list[Any]:
    """Runs of tokens that are never written; what ends a text is no bad word to transformers."""
    words, tokens = hf_generation.get("bad_words_ids", []), hf_generation.get("suppress_tokens", [])
    if not isinstance(words, list):
        raise UserError(f"bad_words_ids must be a list, not {words!r}")
    if not isinstance(tokens, list):
        raise UserError(f"suppress_tokens must be a list, not {tokens!r}")
    runs = [run for run in words if run not in [[end] for end in eos_token_ids]]
    return runs + [[token] for token in map(first_token_id, tokens) if token < vocab_size]


def _length_limits(
    checkpoint: Checkpoint, hf_generation: Config, *, beam_search: bool
) -> tuple[Config, dict[str, Any]]:
    """Our limits of length, and those of theirs that are not applied.

    Theirs count what a decoder begins with: a token of a target, a whole prompt of a text.
    """
    longest, reported = checkpoint.config.max_seq_len, {}
    most, least = hf_generation.get("max_new_tokens"), hf_generation.get("min_new_tokens")
    for name in ("max_length", "min_length"):
        value = hf_generation.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, int):
            raise UserError(f"{name} must be an integer, not {value!r}")
    if checkpoint.family.seq2seq:
        if most is None and "max_length" in hf_generation:
            most = max(1, min(hf_generation["max_length"], longest) - 1)
        if least is None:
            least = max(0, hf_generation.get("min_length", 0) - 1)
    else:
        if most is None and "max_length" in hf_generation:
            reported["max_length"] = hf_generation["max_length"]
        if least is None and hf_generation.get("min_length", 0):
            reported["min_length"] = hf_generation["min_length"]
    if most is None:  # theirs have 20
        most = max(min(50, max(1, longest // 2)), least if isinstance(least, int) else 0)
    elif hf_generation.get("forced_eos_token_id") is not None and not beam_search and most != 1:
        most -= 1  # the last token is the end, which is not part of the text
    elif hf_generation.get("forced_eos_token_id") is not None:
        reported["forced_eos_token_id"] = hf_generation["forced_eos_token_id"]
    return {"max_new_tokens": most, "min_new_tokens": 0 if least is None else least}, reported


def to_hf_generation_config(
    options: GenerationConfig, special_token_ids: Config, hf_metadata: Config
) -> Config:
    """A `generation_config.json`: theirs again where it is remembered, else ours in their words.

    A warning names what they have no word for.
    """
    if isinstance(hf_metadata.get("generation_config"), dict):
        return dict(hf_metadata["generation_config"])
    sampled = options.temperature > 0 and options.num_beams == 1
    made: Config = {
        **{name: value for name, value in special_token_ids.items() if value is not None},
        "max_new_tokens": options.max_new_tokens,
        "do_sample": sampled,
    }
    if options.stop_token_ids:
        made["eos_token_id"] = options.eos_token_ids
    if options.num_beams > 1:
        made["early_stopping"] = "never"
    for theirs, (ours, nothing) in {
        **_COMMON_OPTIONS,
        **(_SAMPLING_OPTIONS if sampled else _BEAM_OPTIONS),
    }.items():
        value = getattr(options, ours)
        if (sampled and theirs in _SAMPLING_OPTIONS) or value not in (None, nothing):
            made[theirs] = nothing if value is None else value
    asked = {name: getattr(options, name) for name in _MINIFORMER_ONLY}
    lost = {name: value for name, value in asked.items() if value != _MINIFORMER_ONLY[name]}
    if lost:
        settings = ", ".join(f"{name}={value!r}" for name, value in lost.items())
        warnings.warn(
            f"generation_config.json: {settings}: transformers has no such setting; left out",
            NoEffectWarning,
            stacklevel=2,
        )
    return made
