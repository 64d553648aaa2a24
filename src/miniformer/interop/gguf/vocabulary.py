"""The tokenizer of a GGUF file; `tokenizer.py` is its inverse."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from miniformer.config import UserError
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.interop.gguf.tokenizer import CONTROL, PRE_TOKENIZERS, UNUSED, USER_DEFINED

Metadata = dict[str, Any]
_WORD_START = "\u2581"


class Vocabulary(NamedTuple):
    """Tokens of a file, checked.

    Args:
        tokens: all tokens, by id.
        types: their types.
        metadata: keys of the file.
    """

    tokens: list[str]
    types: list[int]
    metadata: Metadata

    def token_id(self, name: str) -> int | None:
        """Id of a special token; None: the file has none.

        Raises:
            UserError: it is not the id of a token.
        """
        value = self.metadata.get(f"tokenizer.ggml.{name}_token_id")
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int):
            raise UserError(f"tokenizer.ggml.{name}_token_id={value!r:.80} is not an id")
        if not 0 <= value < len(self.tokens):
            raise UserError(f"tokenizer.ggml.{name}_token_id={value} is outside the vocabulary")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """Value of a flag."""
        value = self.metadata.get(f"tokenizer.ggml.{name}", default)
        return value if isinstance(value, bool) else default


def read_tokenizer(metadata: Metadata, vocab_size: int, kind: str) -> tuple[Tokenizer | None, str]:
    """The tokenizer of a file, or None and the reason.

    Args:
        metadata: keys of the file.
        vocab_size: rows of the embedding.
        kind: decoder, encoder or seq2seq, which determines the default template.

    Raises:
        UserError: the keys are invalid.
    """
    model = metadata.get("tokenizer.ggml.model", "no_vocab")
    if model in ("no_vocab", "none"):
        return None, "the file has no tokenizer, so the model takes token ids only"
    makers = {"gpt2": _make_bpe, "bert": _make_wordpiece, "t5": _make_unigram}
    pre = metadata.get("tokenizer.ggml.pre", "default")
    if model not in makers or (model == "gpt2" and pre not in PRE_TOKENIZERS):
        return None, (
            f"the tokenizer {model!r:.80} with the pre-tokenizer {pre!r:.80} is not imported, so "
            "the model takes token ids only"
        )
    vocabulary = _read_vocabulary(metadata, vocab_size)
    try:
        backend = makers[model](vocabulary)
        for number, (token, token_type) in enumerate(
            zip(vocabulary.tokens, vocabulary.types, strict=True)
        ):
            if token_type in (CONTROL, USER_DEFINED):
                special = token_type == CONTROL
                backend.add_tokens([AddedToken(token, special=special, normalized=False)])
                if backend.token_to_id(token) != number:
                    raise UserError(f"tokenizer.ggml.tokens: {token!r:.80} occurs twice")
        eos = vocabulary.token_id("eos")
        tokenizer = Tokenizer(backend, None if eos is None else vocabulary.tokens[eos])
        _add_template(backend, vocabulary, tokenizer, kind)
        return Tokenizer(backend, tokenizer.eos_token), ""
    except UserError:
        raise
    except Exception as error:  # tokenizers raises errors of any type
        raise UserError(f"tokenizer.ggml: not a tokenizer: {str(error)[:200]}") from None


def _read_vocabulary(metadata: Metadata, vocab_size: int) -> Vocabulary:
    tokens, types = (metadata.get(f"tokenizer.ggml.{x}") for x in ("tokens", "token_type"))
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise UserError("tokenizer.ggml.tokens must be a list of strings")
    if len(tokens) != vocab_size:
        raise UserError(
            f"tokenizer.ggml.tokens has {len(tokens)} tokens, but the embedding {vocab_size} rows"
        )
    types = [1] * len(tokens) if types is None else types
    if not isinstance(types, list) or len(types) != len(tokens):
        raise UserError("tokenizer.ggml.token_type must have a number for each token")
    return Vocabulary(tokens, types, metadata)


def _used(vocabulary: Vocabulary) -> dict[str, int]:
    return {
        token: number
        for number, (token, kind) in enumerate(
            zip(vocabulary.tokens, vocabulary.types, strict=True)
        )
        if kind != UNUSED
    }


def _make_bpe(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    merges = vocabulary.metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, list) or not all(isinstance(item, str) for item in merges):
        raise UserError("tokenizer.ggml.merges must be a list of strings")
    vocab = _used(vocabulary)
    pairs = [(left, right) for left, _, right in (item.partition(" ") for item in merges)]
    if len(pairs) == 1 and pairs[0][0] not in vocab:  # the format has no empty list
        pairs = []
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=bool(pairs))
    backend.decoder = decoders.ByteLevel()
    return backend


def _make_wordpiece(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    unknown = vocabulary.token_id("unknown")
    special = {number for number, kind in enumerate(vocabulary.types) if kind != 1}
    special |= {unknown} if unknown is not None else set()
    vocab = {}
    for token, number in _used(vocabulary).items():
        inside = number not in special and not token.startswith(_WORD_START)
        plain = token if number in special else token.removeprefix(_WORD_START)
        vocab["##" + plain if inside else plain] = number
    text = "[UNK]" if unknown is None else vocabulary.tokens[unknown].removeprefix(_WORD_START)
    backend = tokenizers.Tokenizer(models.WordPiece(vocab=vocab, unk_token=text))
    lowercase = vocabulary.flag("normalizer.lowercase", True)
    backend.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase, strip_accents=vocabulary.flag("normalizer.strip_accents", lowercase)
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return backend


def _make_unigram(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    scores = vocabulary.metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(vocabulary.tokens):
        raise UserError("tokenizer.ggml.scores must have a number for each token")
    count = len(vocabulary.tokens)
    while count and vocabulary.types[count - 1] == UNUSED:
        count -= 1
    scored_tokens = [(vocabulary.tokens[i], float(scores[i])) for i in range(count)]
    backend = tokenizers.Tokenizer(
        models.Unigram(scored_tokens, vocabulary.token_id("unknown"), False)
    )
    charsmap = vocabulary.metadata.get("tokenizer.ggml.precompiled_charsmap")
    if charsmap is not None:
        backend.normalizer = normalizers.Precompiled(_check_charsmap(charsmap))
    scheme = "always" if vocabulary.flag("add_space_prefix", True) else "never"
    space = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    if vocabulary.flag("remove_extra_whitespaces", False):
        split = pre_tokenizers.WhitespaceSplit()
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, space])
    else:
        backend.pre_tokenizer = space
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return backend


def _check_charsmap(values: Any) -> bytes:
    """The table of SentencePiece's normalization, whose first number is the size of its trie."""
    try:
        data = bytes(value % 256 for value in values)
        (size,) = struct.unpack("<I", data[:4])
    except (TypeError, ValueError, struct.error):
        raise UserError("tokenizer.ggml.precompiled_charsmap must be a list of bytes") from None
    if size % 4 or not 0 < size < len(data) - 4:
        raise UserError("tokenizer.ggml.precompiled_charsmap is damaged")
    return data


def _add_template(
    backend: tokenizers.Tokenizer, vocabulary: Vocabulary, tokenizer: Tokenizer, kind: str
) -> None:
    """Adds the special tokens around texts, unless they are the default of the kind of model."""
    bos, eos = vocabulary.token_id("bos"), vocabulary.token_id("eos")
    wordpiece = vocabulary.metadata.get("tokenizer.ggml.model") == "bert"
    if wordpiece:
        separator = vocabulary.token_id("seperator")
        eos = eos if separator is None else separator
    before = bos if vocabulary.flag("add_bos_token", wordpiece) else None
    after = eos if vocabulary.flag("add_eos_token", wordpiece) else None
    defaults = {
        "decoder": (tokenizer.eos_id, None),
        "encoder": (tokenizer.eos_id, None),
        "seq2seq": (None, tokenizer.eos_id),
    }
    if (before, after) in (defaults[kind], (None, None)):
        return
    special = {i: vocabulary.tokens[i] for i in (before, after) if i is not None}
    first = [] if before is None else [special[before]]
    last = [] if after is None else [special[after]]
    middle = last if kind != "decoder" else []
    second = 0 if kind == "seq2seq" else 1
    backend.post_processor = TemplateProcessing(
        single=[*first, "$A", *last],
        pair=[*first, "$A", *middle, f"$B:{second}", *(f"{token}:{second}" for token in last)],
        special_tokens=[(token, number) for number, token in special.items()],
    )
