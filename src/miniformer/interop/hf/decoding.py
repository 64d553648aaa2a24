"""Decoding settings: `generation_config.json` in their words and in ours."""

from __future__ import annotations

from typing import Any

from miniformer.config import GenerationConfig, UserError
from miniformer.interop.hf.configs import Config
from miniformer.interop.hf.reading import Checkpoint
from miniformer.interop.hf.texts import first, said

# theirs -> ours, and the value that asks for nothing
_ANY: dict[str, tuple[str, Any]] = {
    "min_new_tokens": ("min_new_tokens", 0),
    "repetition_penalty": ("repetition_penalty", 1.0),
    "no_repeat_ngram_size": ("no_repeat_ngram", 0),
    "bad_words_ids": ("bad_ids", []),
}
_SAMPLED: dict[str, tuple[str, Any]] = {
    "temperature": ("temperature", 1.0),
    "top_k": ("top_k", 0),
    "top_p": ("top_p", 1.0),
    "min_p": ("min_p", 0.0),
}
_SEARCHED: dict[str, tuple[str, Any]] = {
    "num_beams": ("num_beams", 1),
    "length_penalty": ("length_penalty", 1.0),
}


def decoding_of(checkpoint: Checkpoint) -> GenerationConfig:
    """Decoding settings, as far as ours have them.

    Raises:
        UserError: a value is none that decoding can have.
    """
    given = checkpoint.directory.json("generation_config.json") or {}
    room = max(1, checkpoint.config.max_seq_len // 2)
    wanted, sampled = given.get("max_new_tokens"), given.get("do_sample") is True
    ends = said(checkpoint, "eos_token_id")
    ends = [first(end) for end in (ends if isinstance(ends, list) else [ends]) if end is not None]
    values: Config = {
        "max_new_tokens": min(50, room) if wanted is None else wanted,
        "temperature": 1.0 if sampled else 0.0,
        "eos_id": ends[0] if ends else None,
        "stop_ids": ends[1:] or None,
    }
    for theirs, (ours, nothing) in {**_ANY, **(_SAMPLED if sampled else _SEARCHED)}.items():
        value = given.get(theirs)
        if value is not None and value != nothing:
            values[ours] = value
    try:
        made = GenerationConfig.from_dict(values)
    except UserError as error:
        path = checkpoint.directory.path / "generation_config.json"
        raise UserError(f"{path}: {error}") from None
    named = [("eos_token_id", token) for token in made.ends]
    named += [("bad_words_ids", token) for run in made.bad_ids or [] for token in run]
    for name, token in named:
        if not 0 <= token < checkpoint.config.vocab_size:
            where = checkpoint.directory.path
            raise UserError(f"{where}: {name}={token} is outside the vocabulary")
    return made


def decoding(options: GenerationConfig, ids: Config, kept: Config) -> Config:
    """A `generation_config.json`: theirs again where it is remembered, else ours in their words."""
    if isinstance(kept.get("generation_config"), dict):
        return dict(kept["generation_config"])
    sampled = options.temperature > 0 and options.num_beams == 1
    made: Config = {
        **{name: value for name, value in ids.items() if value is not None},
        "max_new_tokens": options.max_new_tokens,
        "do_sample": sampled,
    }
    if options.stop_ids:
        made["eos_token_id"] = options.ends
    for theirs, (ours, nothing) in {**_ANY, **(_SAMPLED if sampled else _SEARCHED)}.items():
        value = getattr(options, ours)
        if (sampled and theirs in _SAMPLED) or value not in (None, nothing):
            made[theirs] = nothing if value is None else value
    return made
