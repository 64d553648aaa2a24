"""Fit of character n-grams: the characters of each token, and the n-grams of several texts."""

from __future__ import annotations

import json
import re
from typing import Any

import torch

from miniformer.config import TransformerConfig
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.model.wide_head.characters import CharacterFeatures
from miniformer.model.wide_head.head import make_features
from miniformer.training.tuning.wide_head.data import WideData
from miniformer.training.tuning.wide_head.ngrams import (
    MAX_ALPHABET_SIZE,
    MAX_VALUES,
    count_keys,
    set_known_ngrams,
)

_LENGTH = 5  # characters of the longest n-gram
_MAX_CHARACTERS = 3_000_000  # of the training texts; with more, words occur often enough
_CHARACTERS_PER_TOKEN = 4  # about
_MAX_WIDTH = 16  # characters of a token
_WORD_SEPARATOR = "▁"  # of SentencePiece
_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")


def propose_characters(config: TransformerConfig, data: WideData) -> list[dict[str, Any]]:
    """The group, for texts of moderate size in tokens that are longer than characters."""
    characters = int(data.lengths.sum()) * _CHARACTERS_PER_TOKEN
    if config.vocab_size <= MAX_ALPHABET_SIZE or characters > _MAX_CHARACTERS:
        return []
    assert data.tokenizer is not None
    width = min(_MAX_WIDTH, max(map(len, token_texts(data.tokenizer))))
    sizes = {"vocab": config.vocab_size, "width": width}
    return [{"type": "characters", "length": _LENGTH, **sizes}]


def fit_characters(
    group: dict[str, Any], config: TransformerConfig, data: WideData
) -> CharacterFeatures | None:
    """Features of the most frequent n-grams of characters; None: no n-gram is in several texts.

    Args:
        group: with `size`, or without: as many as there are, up to a limit.
        config: of the model.
        data: the training data.
    """
    assert data.tokenizer is not None
    reader: CharacterFeatures = make_features({**group, "size": 1})
    for row, text in zip(reader.table, token_texts(data.tokenizer), strict=False):
        codes = [ord(character) for character in text[: len(row)]]
        row[: len(codes)] = torch.tensor(codes, dtype=torch.int32)
    keys, counts = count_keys(reader.hashes(inputs) for inputs in data.inputs())
    size = group.get("size") or min(len(keys), MAX_VALUES // (config.output_dim or 1))
    if not size:
        return None
    features: CharacterFeatures = make_features({**group, "size": size})
    features.table.copy_(reader.table)
    set_known_ngrams(features, keys, counts, len(data.lengths))
    return features


def token_texts(tokenizer: Tokenizer) -> list[str]:
    """The text of each token, with a space between words.

    Special tokens are a space. Bytes that are no character are U+FFFD.
    """
    backend = tokenizer.backend
    settings = json.loads(backend.to_str())
    decoder = json.dumps(settings["decoder"], ensure_ascii=False)
    suffix = (settings["decoder"] or {}).get("suffix") if '"BPEDecoder"' in decoder else None
    special = {token["id"] for token in settings["added_tokens"] if token["special"]}
    texts = []
    for index in range(backend.get_vocab_size()):
        token = backend.id_to_token(index) or ""
        if index in special:
            text = " "
        elif '"ByteLevel"' in decoder:
            text = backend.decode([index])
        elif _BYTE_TOKEN.fullmatch(token):
            text = "\ufffd"
        elif '"WordPiece"' in decoder:
            text = token.removeprefix("##") if token.startswith("##") else f" {token}"
        elif suffix:  # marks the last token of a word
            text = f"{token.removesuffix(suffix)} " if token.endswith(suffix) else token
        elif _WORD_SEPARATOR in decoder:
            text = token.replace(_WORD_SEPARATOR, " ")
        else:
            text = f" {token}"
        texts.append(text)
    return texts
