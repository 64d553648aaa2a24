"""Text to token ids and back, on Hugging Face `tokenizers`; trained on the user's own text.

Every tokenizer has one boundary token. It begins a document and, as the next prediction after a
document's last token, ends it: the convention of GPT-2's <|endoftext|>. The text of a user can
spell a special token, but never becomes one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import tokenizers

from miniformer import registry
from miniformer.config import UserError
from miniformer.data.tokenizers.training import EOS_TOKEN, PAD_TOKEN
from miniformer.utils.atomic import write_text

# What others call the token that ends a text.
_KNOWN_EOS_TOKENS = (EOS_TOKEN, "</s>", "<|end_of_text|>", "<|im_end|>", "<eos>", "[SEP]", "[EOS]")

# Decoders whose text only grows with more tokens; bytes of a character that is not whole aside.
_CONTEXT_FREE_DECODERS = {"ByteLevel", "Fuse", "ByteFallback", "Replace", "Metaspace", "Strip"}


class SpecialTokenTemplate(NamedTuple):
    """The tokens around a text, or around the first and second of a pair."""

    prefix: list[int]
    separator: list[int]
    suffix: list[int]
    separator_type_id: int  # token types: 0 up to here
    second_type_id: int  # and from here on


class Tokenizer:
    """Encodes and decodes text.

    Args:
        backend: a Hugging Face tokenizer.
        boundary: its boundary token; None: one with a usual name, and where there is none
            <|endoftext|> is added, of which `note` tells.

    `source` is the tokenizer of sources, where they have a vocabulary of their own.
    """

    def __init__(self, backend: tokenizers.Tokenizer, eos_token: str | None = None) -> None:
        self.separate_source_tokenizer: Tokenizer | None = None
        self.warning: str | None = None
        if eos_token is not None and backend.token_to_id(eos_token) is None:
            raise UserError(
                f"the boundary token {eos_token!r} is not in the tokenizer's vocabulary"
            )
        if eos_token is None:
            usual = (name for name in _KNOWN_EOS_TOKENS if backend.token_to_id(name) is not None)
            eos_token = next(usual, None)
        if eos_token is None:
            eos_token = EOS_TOKEN
            self.warning = f"the tokenizer has no token that ends a text; {EOS_TOKEN} was added"
        backend.add_special_tokens([eos_token])
        backend.encode_special_tokens = True  # special tokens spelled out in text stay text
        backend.no_truncation()  # a foreign file may cut or fill texts, which is not its business
        backend.no_padding()
        self.backend = backend
        self.eos_token = eos_token
        found = backend.token_to_id(eos_token)
        assert found is not None  # it was added just now
        self.eos_id: int = found
        self._template = _infer_template(backend)

    @classmethod
    def train(cls, kind: str, texts: Iterable[str], vocab_size: int | None = None) -> Tokenizer:
        """Trains a tokenizer.

        Args:
            kind: its registered name.
            texts: what it learns from; may be read more than once.
            vocab_size: ids at most, special tokens included; None: 10,000, or what they need for
                char and byte, which never take more.

        Raises:
            UserError: `vocab_size` is too small for this kind of tokenizer.
        """
        return cls(registry.get("tokenizer", kind)(texts, vocab_size))

    @classmethod
    def from_path(cls, path: str | Path) -> Tokenizer:
        """Reads a `tokenizer.json`, or the one of a Hugging Face or a model directory.

        The token that ends a text is what a `tokenizer_config.json` beside it says (eos_token, else
        sep_token, else bos_token), else one with a usual name.

        Raises:
            UserError: it is missing or not a tokenizer.
        """
        path = Path(path)
        if path.is_dir():
            if not (path / "tokenizer.json").is_file():
                others = sorted(
                    each.name
                    for each in path.iterdir()
                    if each.name in ("vocab.txt", "vocab.json", "merges.txt")
                    or each.suffix == ".model"
                )
                hint = f" (it has {', '.join(others)})" if others else ""
                raise UserError(
                    f"{path}: no tokenizer.json in it{hint}; transformers writes one with "
                    "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
                )
            path = path / "tokenizer.json"
        if not path.is_file():
            raise UserError(f"{path}: no such tokenizer file")
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            raise UserError(f"{path}: not a tokenizer.json: {error}") from None
        return cls(backend, _read_eos_token(path.with_name("tokenizer_config.json"), backend))

    def save(self, path: str | Path) -> None:
        """Writes `tokenizer.json` and, beside it, which token is the boundary."""
        path = Path(path)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": self.eos_token,
            "clean_up_tokenization_spaces": False,
        }
        if self.backend.token_to_id(PAD_TOKEN) is not None:
            config["pad_token"] = PAD_TOKEN
        text = json.dumps(config, indent=2) + "\n"
        write_text(path.with_name("tokenizer_config.json"), text)
        write_text(path, self.backend.to_str(pretty=True))

    @property
    def source_tokenizer(self) -> Tokenizer:
        """What encodes the sources of seq2seq: this one, or one of their own."""
        return self.separate_source_tokenizer or self

    @property
    def input_template(self) -> SpecialTokenTemplate:
        """What is around the inputs of classification and regression.

        The file's own template says it; without one a boundary begins each text.
        """
        boundary = [self.eos_id]
        return self._template or SpecialTokenTemplate(boundary, boundary, [], 1, 1)

    @property
    def sequence_template(self) -> SpecialTokenTemplate:
        """The same of sources and targets of seq2seq; without a template a boundary ends each."""
        return self._template or SpecialTokenTemplate([], [], [self.eos_id], 0, 0)

    @property
    def bos_id(self) -> int:
        """The token that begins a document: the boundary, if no template says another."""
        before = self._template.prefix if self._template else []
        return before[0] if len(before) == 1 else self.eos_id

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id, special tokens included."""
        # Kept: asked for with each text, and the backend makes a dict of all tokens to tell.
        return max(self.backend.get_vocab().values()) + 1

    @cached_property
    def has_contextual_decoding(self) -> bool:
        """Whether the text of a token may change with those after it, as before a comma."""
        decoder = json.loads(self.backend.to_str())["decoder"] or {"type": "none"}
        parts = [part["type"] for part in decoder.get("decoders", [decoder])]
        whole = parts[parts.index("Fuse") :] if "Fuse" in parts else []  # what sees all the text
        return not _CONTEXT_FREE_DECODERS.issuperset(parts) or "Replace" in whole

    @cached_property
    def _byte_fallback_ids(self) -> frozenset[int]:
        """Tokens that are single bytes, such as <0xE9>, of which a run is decoded as a whole."""
        if "ByteFallback" not in json.dumps(json.loads(self.backend.to_str())["decoder"]):
            return frozenset()
        names = (self.backend.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
        return frozenset(number for number in names if number is not None)

    def stable_length(self, ids: Sequence[int], text: str) -> int:
        """Number of characters at the beginning of a text that more tokens do not change.

        Args:
            ids: token ids.
            text: what they decode to.
        """
        length = len(text.rstrip("\ufffd"))  # bytes of a character that is not complete
        if self._byte_fallback_ids:  # one bad byte makes each byte of its run U+FFFD
            before = len(ids)
            while before and ids[before - 1] in self._byte_fallback_ids:
                before -= 1
            if before < len(ids):
                length = min(length, len(self.decode(ids[:before])))
        if self.has_contextual_decoding:
            length = min(length, max(0, text.rfind(" ")))
        return length

    def token_bytes(self) -> tuple[list[bytes], list[int]]:
        """The bytes that each token adds to a text, and the tokens that stand for none.

        Raises:
            UserError: what a token adds depends on its neighbours, as spaces between words do.
        """
        file = json.loads(self.backend.to_str())
        kind = (file["decoder"] or {"type": "none"})["type"]
        if kind not in ("ByteLevel", "Fuse"):
            raise UserError(
                "a form of text needs a tokenizer whose tokens are pieces of it: bpe, unigram, "
                f"byte or char; this one puts words together ({kind})"
            )
        table = {character: byte for byte, character in _bytes_to_unicode().items()}
        found, special = [b""] * self.vocab_size, []
        added = {each["id"] for each in file["added_tokens"] if each["special"]}
        for token, number in self.backend.get_vocab().items():
            if number in added:
                special.append(number)
            elif kind == "ByteLevel":
                found[number] = bytes(table[character] for character in token)
            else:
                found[number] = token.encode()
        return found, sorted(special)

    @cached_property
    def unk_id(self) -> int | None:
        """The token that stands for what the vocabulary does not have; None: there is none."""
        model = json.loads(self.backend.to_str())["model"]
        token = model.get("unk_token")
        found: int | None = model.get("unk_id")
        return found if token is None else self.backend.token_to_id(token)

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


def _bytes_to_unicode() -> dict[int, str]:
    """The character that stands for each byte in byte-level tokens (GPT-2)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    shown = {byte: chr(byte) for byte in plain}
    return shown | {byte: chr(256 + place) for place, byte in enumerate(others)}


def _infer_template(backend: tokenizers.Tokenizer) -> SpecialTokenTemplate | None:
    """What the file's post-processor puts around texts; None: nothing."""
    if not backend.num_special_tokens_to_add(False):
        return None
    usual = ("a", "A", "1", ".", "?")
    some = [text for text in usual if backend.encode(text, add_special_tokens=False).ids]
    if not some:
        return None
    single, pair = backend.encode(some[0]), backend.encode(some[0], some[0])

    def parts(encoding: tokenizers.Encoding) -> list[list[int]]:
        """Special tokens before, between and after the texts, as places."""
        groups: list[list[int]] = [[]]
        of_text: int | None = None
        for place, text in enumerate(encoding.sequence_ids):
            if text is None:
                groups[-1].append(place)
            elif text != of_text:
                groups.append([])
            of_text = text
        return groups

    first, second = parts(single), parts(pair)
    if len(first) != 2 or len(second) != 3:
        return None
    types = pair.type_ids
    return SpecialTokenTemplate(
        [single.ids[place] for place in first[0]],
        [pair.ids[place] for place in second[1]],
        [single.ids[place] for place in first[1]],
        types[second[1][0]] if second[1] else 0,
        types[pair.sequence_ids.index(1)],
    )


def _read_eos_token(path: Path, backend: tokenizers.Tokenizer) -> str | None:
    """The token that ends a text, as a `tokenizer_config.json` says; None: it says nothing."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a tokenizer_config.json: {error}") from None
    for name in ("eos_token", "sep_token", "bos_token"):
        token = config.get(name) if isinstance(config, dict) else None
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str) and backend.token_to_id(token) is not None:
            return token
    return None
