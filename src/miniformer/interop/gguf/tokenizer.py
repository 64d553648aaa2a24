"""Conversion of a tokenizer to metadata keys of a GGUF file.

| kind here | model of llama.cpp | tokens in the file |
|---|---|---|
| byte-level BPE, bytes | `gpt2` | as they are, merges as "left right" |
| unigram of characters (T5) | `t5` | as they are, with scores |
| WordPiece (BERT) | `bert` | a first part begins with U+2581, others lose their ## |

Other kinds are refused: llama.cpp would split texts differently.
"""

from __future__ import annotations

import base64
import json
from typing import Any

from miniformer.config import UserError
from miniformer.data.tokenizers.tokenizer import SpecialTokenTemplate, Tokenizer
from miniformer.data.tokenizers.training import PAD_TOKEN

Metadata = dict[str, Any]
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5  # types of tokens
_WORD_START = "\u2581"
# Names of the regular expression of GPT-2 in llama.cpp. With the second name its function
# `llama_detokenize` removes spaces before punctuation, with the first it does not.
PRE_TOKENIZERS = ("trillion", "gpt-2")
_WITHOUT = "export without it: --options '{\"tokenizer\": false}'"


def write_tokenizer(
    tokenizer: Tokenizer | None,
    vocab_size: int,
    *,
    template: SpecialTokenTemplate | None,
    chat_template: str | None = None,
) -> Metadata:
    """Keys of a tokenizer.

    Args:
        tokenizer: the tokenizer; None: the file takes token ids only.
        vocab_size: rows of the embedding; missing tokens are filled in as unused.
        template: special tokens that llama.cpp adds to a text.
        chat_template: Jinja text of the chat format.

    Raises:
        UserError: llama.cpp has no such tokenizer.
    """
    if tokenizer is None:
        return {"tokenizer.ggml.model": "no_vocab"}
    content = json.loads(tokenizer.backend.to_str())
    kind = content["model"]["type"]
    types: dict[int, int] = {}
    if kind == "BPE":
        keys, tokens = _write_bpe(content), _tokens(content)
    elif kind == "Unigram":
        keys, tokens, types = _write_unigram(content)
    elif kind == "WordPiece":
        keys, tokens, types = _write_wordpiece(content, template)
    else:
        raise UserError(
            f"llama.cpp has no tokenizer of the kind {kind} (word or char); train one of the kind "
            f"bpe, or {_WITHOUT}"
        )
    for token in content["added_tokens"]:
        tokens[token["id"]] = token["content"]
        if types.get(token["id"]) != UNKNOWN:
            types[token["id"]] = CONTROL if token["special"] else USER_DEFINED
    if len(set(tokens.values())) < len(tokens):
        raise UserError(f"two tokens have the same text in llama.cpp; {_WITHOUT}")
    ids = range(vocab_size)
    scores = keys.pop("scores", None)
    if scores is not None:
        keys["tokenizer.ggml.scores"] = [float(scores.get(i, -1000.0)) for i in ids]
    keys["tokenizer.ggml.tokens"] = [tokens.get(i, f"[PAD{i}]") for i in ids]
    keys["tokenizer.ggml.token_type"] = [
        types.get(i, NORMAL if i in tokens else UNUSED) for i in ids
    ]
    keys |= _special_ids(tokenizer, template)
    if chat_template is not None:
        keys["tokenizer.chat_template"] = chat_template
    return keys


def _special_ids(tokenizer: Tokenizer, template: SpecialTokenTemplate | None) -> Metadata:
    prefix, suffix = ([], []) if template is None else (template.prefix, template.suffix)
    if len(prefix) > 1 or len(suffix) > 1:
        raise UserError(
            f"llama.cpp adds one token before and one after a text at most, not {prefix} and "
            f"{suffix}; {_WITHOUT}"
        )
    eos = suffix[0] if suffix else tokenizer.eos_id
    ids = {
        "bos": prefix[0] if prefix else tokenizer.bos_id,
        "eos": eos,
        "seperator": eos if suffix else None,  # the format's spelling
        "padding": tokenizer.backend.token_to_id(PAD_TOKEN),
        "unknown": tokenizer.unk_id,
    }
    for name, texts in (("padding", ("[PAD]", "<pad>")), ("mask", ("[MASK]", "<mask>"))):
        candidates = (tokenizer.backend.token_to_id(text) for text in texts)
        ids[name] = next((i for i in (ids.get(name), *candidates) if i is not None), None)
    return {
        **{f"tokenizer.ggml.{name}_token_id": i for name, i in ids.items() if i is not None},
        "tokenizer.ggml.add_bos_token": bool(prefix),
        "tokenizer.ggml.add_eos_token": bool(suffix),
    }


def _tokens(content: Any) -> dict[int, str]:
    return {number: token for token, number in content["model"]["vocab"].items()}


def _refuse(content: Any, part: str) -> UserError:
    value = content[part]
    name = "none" if value is None else value.get("type", "")
    if name == "Sequence":
        name = " and ".join(
            step["type"] for steps in value.values() if isinstance(steps, list) for step in steps
        )
    return UserError(
        f"llama.cpp has no {content['model']['type']} tokenizer with the {part} {name}; {_WITHOUT}"
    )


def _write_bpe(content: Any) -> Metadata:
    model, split = content["model"], content["pre_tokenizer"] or {}
    if content["normalizer"] is not None:
        raise _refuse(content, "normalizer")
    bytes_only = split.get("use_regex") or not model["merges"]
    if split.get("type") != "ByteLevel" or split["add_prefix_space"] or not bytes_only:
        raise _refuse(content, "pre_tokenizer")
    for name in ("unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback",
                 "ignore_merges"):  # fmt: skip
        if model.get(name):
            raise UserError(f"llama.cpp has no byte-level BPE with {name}; {_WITHOUT}")
    merges = [item if isinstance(item, str) else " ".join(item) for item in model["merges"]]
    # The format has no empty list. No text holds two of these tokens, so the merge never applies.
    merges = merges or ["<|none|> <|none|>"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": PRE_TOKENIZERS[0],
        "tokenizer.ggml.merges": merges,
    }


def _write_unigram(content: Any) -> tuple[Metadata, dict[int, str], dict[int, int]]:
    model = content["model"]
    steps = _steps(content["pre_tokenizer"], "pretokenizers")
    space = next((step for step in steps if step["type"] == "Metaspace"), None)
    if space is None or {step["type"] for step in steps} - {"Metaspace", "WhitespaceSplit"}:
        raise _refuse(content, "pre_tokenizer")
    normalizers = _steps(content["normalizer"], "normalizers")
    if {step["type"] for step in normalizers} - {"Precompiled", "Replace", "Strip"}:
        raise _refuse(content, "normalizer")
    keys: Metadata = {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.add_space_prefix": space.get("prepend_scheme", "always") != "never",
        "tokenizer.ggml.remove_extra_whitespaces": len(steps) > 1 or len(normalizers) > 1,
        "scores": {number: score for number, (_, score) in enumerate(model["vocab"])},
    }
    for step in normalizers:
        if step["type"] == "Precompiled" and step["precompiled_charsmap"]:
            charsmap = base64.b64decode(step["precompiled_charsmap"])
            keys["tokenizer.ggml.precompiled_charsmap"] = charsmap
    unknown = model.get("unk_id")
    types = {} if unknown is None else {unknown: UNKNOWN}
    return keys, {i: token for i, (token, _) in enumerate(model["vocab"])}, types


def _steps(part: Any, name: str) -> list[Any]:
    """The steps of a normalizer or pre-tokenizer."""
    if part is None:
        return []
    steps: list[Any] = part[name] if part["type"] == "Sequence" else [part]
    return steps


def _write_wordpiece(
    content: Any, template: SpecialTokenTemplate | None
) -> tuple[Metadata, dict[int, str], dict[int, int]]:
    normalizer = content["normalizer"] or {}
    if normalizer.get("type") != "BertNormalizer" or not normalizer["handle_chinese_chars"]:
        raise _refuse(content, "normalizer")
    if (content["pre_tokenizer"] or {}).get("type") != "BertPreTokenizer":
        raise _refuse(content, "pre_tokenizer")
    if template is None or (len(template.prefix), len(template.suffix)) != (1, 1):
        raise UserError(
            "llama.cpp's WordPiece puts one token before and one after each text, and this "
            f"tokenizer does not; {_WITHOUT}"
        )
    lowercase, prefix = normalizer["lowercase"], content["model"]["continuing_subword_prefix"]
    accents = normalizer["strip_accents"]
    special = {token["id"] for token in content["added_tokens"]}
    tokens = {
        number: token
        if number in special
        else token.removeprefix(prefix)
        if token.startswith(prefix) and token != prefix
        else _WORD_START + token
        for number, token in _tokens(content).items()
    }
    keys: Metadata = {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.normalizer.lowercase": lowercase,
        "tokenizer.ggml.normalizer.strip_accents": lowercase if accents is None else accents,
    }
    return keys, tokens, {}
