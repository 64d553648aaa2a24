"""Text to token ids and back, on Hugging Face `tokenizers`; trained on the user's own text.

Every tokenizer has one boundary token. It begins a document and, as the next prediction after a
document's last token, ends it: the convention of GPT-2's <|endoftext|>. The text of a user can
spell a special token, but never becomes one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from miniformer import registry
from miniformer.config import UserError

BOUNDARY, PAD, UNKNOWN = "<|endoftext|>", "<|pad|>", "<|unknown|>"


class Tokenizer:
    """Encodes and decodes text.

    Args:
        backend: a Hugging Face tokenizer that has the boundary token.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        boundary = backend.token_to_id(BOUNDARY)
        if boundary is None:
            raise UserError(
                f"the tokenizer has no boundary token {BOUNDARY!r}; add it as a special token"
            )
        backend.encode_special_tokens = True  # special tokens spelled out in text stay text
        backend.no_truncation()  # a foreign file may cut or fill texts, which is not its business
        backend.no_padding()
        self.backend = backend
        self.boundary_id: int = boundary

    @classmethod
    def train(cls, kind: str, texts: Iterable[str], vocab_size: int | None = None) -> Tokenizer:
        """Trains a tokenizer.

        Args:
            kind: bpe (byte-level), byte, char, or a registered name.
            texts: the text to learn from.
            vocab_size: ids at most, special tokens included; None: 10,000 for bpe, what they need
                for char and byte, which never take more.

        Raises:
            UserError: `vocab_size` is too small for this kind of tokenizer.
        """
        return cls(registry.get("tokenizer", kind)(texts, vocab_size))

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """Reads a `tokenizer.json`.

        Raises:
            UserError: it is missing or not a tokenizer.
        """
        if not Path(path).is_file():
            raise UserError(f"{path}: no such tokenizer file")
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)))
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        except Exception as error:  # tokenizers raises bare Exception
            raise UserError(f"{path}: not a tokenizer.json: {error}") from None

    def save(self, path: str | Path) -> None:
        """Writes `tokenizer.json`, beside and renamed."""
        beside = f"{path}.part"
        self.backend.save(beside)
        os.replace(beside, path)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, special tokens included."""
        return max(self.backend.get_vocab().values()) + 1

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without boundary tokens."""
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, in parallel."""
        # The fast form leaves out character offsets, which nothing here reads.
        encode = getattr(self.backend, "encode_batch_fast", self.backend.encode_batch)
        return [list(encoding.ids) for encoding in encode(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens; bytes that are no UTF-8 become U+FFFD."""
        return str(self.backend.decode(list(ids), skip_special_tokens=True))


def train_bpe(texts: Iterable[str], vocab_size: int | None = None) -> tokenizers.Tokenizer:
    """Byte-level byte-pair encoding, as in GPT-2: any text decodes to itself."""
    vocab_size = vocab_size or 10_000
    _need(vocab_size, 2 + 256, "bpe", "one id for each byte value")
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOUNDARY, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def train_byte(texts: Iterable[str], vocab_size: int | None = None) -> tokenizers.Tokenizer:
    """One id for each byte of UTF-8; nothing is learnt from the text."""
    _need(vocab_size, 2 + 256, "byte", "one id for each byte value")
    tokens = [BOUNDARY, PAD, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = tokenizers.Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([BOUNDARY, PAD])
    return backend


def train_char(texts: Iterable[str], vocab_size: int | None = None) -> tokenizers.Tokenizer:
    """One id for each character seen in the text; others become one unknown token."""
    seen: set[str] = set()
    for text in texts:
        seen.update(text)
    tokens = [BOUNDARY, PAD, UNKNOWN, *sorted(seen)]
    _need(vocab_size, len(tokens), "char", f"one id for each of the text's {len(seen)} characters")
    vocab = {token: i for i, token in enumerate(tokens)}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab=vocab, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([BOUNDARY, PAD, UNKNOWN])
    return backend


def _need(vocab_size: int | None, least: int, kind: str, why: str) -> None:
    if vocab_size is not None and vocab_size < least:
        raise UserError(
            f"vocab_size={vocab_size} is too small for a {kind} tokenizer, which needs {least}: "
            f"{why} and its special tokens"
        )
