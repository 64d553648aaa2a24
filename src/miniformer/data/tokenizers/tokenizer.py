"""Tokenizer: text to token ids and back, based on Hugging Face `tokenizers`.

Every tokenizer has one EOS token. It precedes each document and, as the label of a document's last
token, ends it, as GPT-2's <|endoftext|> does. Special tokens spelled out in text are encoded as
plain text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, cast

import tokenizers

from miniformer import registry
from miniformer.config import UserError
from miniformer.data.tokenizers.training import EOS_TOKEN, PAD_TOKEN
from miniformer.utils.atomic import write_json, write_text
from miniformer.utils.jsonl import read_json

SOURCE_TOKENIZER = "source_tokenizer"  # folder of the separate source tokenizer
_KNOWN_EOS_TOKENS = (EOS_TOKEN, "</s>", "<|end_of_text|>", "<|im_end|>", "<eos>", "[SEP]", "[EOS]")

# Decoders that never change decoded text when tokens are added, except for incomplete characters.
_CONTEXT_FREE_DECODERS = {"ByteLevel", "Fuse", "ByteFallback", "Replace", "Metaspace", "Strip"}


class SpecialTokenTemplate(NamedTuple):
    """Special tokens around a text or a pair of texts."""

    prefix: list[int]
    separator: list[int]
    suffix: list[int]
    separator_type_id: int  # token type of the separator; that of the first text is 0
    second_type_id: int  # token type of the second text


class Tokenizer:
    """Encodes and decodes text.

    Args:
        backend: a Hugging Face tokenizer.
        eos_token: its EOS token; None: a known EOS token of the vocabulary, or else <|endoftext|>,
            which is added.

    Attributes:
        warning: message about an added EOS token, or None.
        separate_source_tokenizer: tokenizer of sources with their own vocabulary, or None.
    """

    def __init__(self, backend: tokenizers.Tokenizer, eos_token: str | None = None) -> None:
        self.separate_source_tokenizer: Tokenizer | None = None
        self.warning: str | None = None
        if eos_token is not None and backend.token_to_id(eos_token) is None:
            raise UserError(f"the EOS token {eos_token!r} is not in the tokenizer's vocabulary")
        if eos_token is None:
            known = (name for name in _KNOWN_EOS_TOKENS if backend.token_to_id(name) is not None)
            eos_token = next(known, None)
        if eos_token is None:
            eos_token = EOS_TOKEN
            self.warning = f"the tokenizer has no EOS token; {EOS_TOKEN} was added"
        backend.add_special_tokens([eos_token])
        backend.encode_special_tokens = True  # special tokens spelled out in text stay text
        backend.no_truncation()  # the settings of a loaded file are ignored
        backend.no_padding()
        self.backend = backend
        self.eos_token = eos_token
        self.eos_id = cast(int, backend.token_to_id(eos_token))
        self._template = _infer_template(backend)

    @classmethod
    def train(cls, kind: str, texts: Iterable[str], vocab_size: int | None = None) -> Tokenizer:
        """Trains a tokenizer.

        Args:
            kind: registered name of the training function.
            texts: training texts; may be read more than once.
            vocab_size: maximum number of ids, special tokens included; None: 10,000, or for char
                and byte the number they need, which is also their maximum.

        Raises:
            UserError: `vocab_size` is too small for this kind of tokenizer.
        """
        return cls(registry.get("tokenizer", kind)(texts, vocab_size))

    @classmethod
    def from_path(cls, path: str | Path) -> Tokenizer:
        """Reads a `tokenizer.json`, or the one in a Hugging Face or model directory.

        The EOS token is that of a `tokenizer_config.json` in the same folder (eos_token, else
        sep_token, else bos_token), else a known EOS token of the vocabulary.

        Raises:
            UserError: the file is missing or not a tokenizer.
        """
        path = Path(path)
        if path.is_dir():
            if not (path / "tokenizer.json").is_file():
                others = sorted(
                    file.name
                    for file in path.iterdir()
                    if file.name in ("vocab.txt", "vocab.json", "merges.txt")
                    or file.suffix == ".model"
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
        """Writes `tokenizer.json`, and `tokenizer_config.json` with the EOS token.

        A separate source tokenizer is written to the folder `source_tokenizer` next to these files.
        """
        path = Path(path)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": self.eos_token,
            "clean_up_tokenization_spaces": False,
        }
        if self.backend.token_to_id(PAD_TOKEN) is not None:
            config["pad_token"] = PAD_TOKEN
        write_json(path.with_name("tokenizer_config.json"), config)
        write_text(path, self.backend.to_str(pretty=True))
        if self.separate_source_tokenizer is not None:
            folder = path.with_name(SOURCE_TOKENIZER)
            folder.mkdir(exist_ok=True)
            self.separate_source_tokenizer.save(folder / "tokenizer.json")

    @property
    def source_tokenizer(self) -> Tokenizer:
        """Tokenizer of seq2seq sources: the separate one, or this one."""
        return self.separate_source_tokenizer or self

    @property
    def input_template(self) -> SpecialTokenTemplate:
        """Special tokens around inputs of classification and regression.

        Default without a template in the file: an EOS token before each text.
        """
        eos = [self.eos_id]
        return self._template or SpecialTokenTemplate(eos, eos, [], 1, 1)

    @property
    def sequence_template(self) -> SpecialTokenTemplate:
        """Special tokens around seq2seq sources and targets; default: an EOS token after each."""
        return self._template or SpecialTokenTemplate([], [], [self.eos_id], 0, 0)

    @property
    def bos_id(self) -> int:
        """BOS token of a document: a template's only prefix token, or the EOS token."""
        prefix = self._template.prefix if self._template else []
        return prefix[0] if len(prefix) == 1 else self.eos_id

    @cached_property
    def vocab_size(self) -> int:
        """Largest id plus one, special tokens included."""
        # Cached: it is used for each text, and the backend builds a dict of all tokens.
        return max(self.backend.get_vocab().values()) + 1

    @cached_property
    def has_contextual_decoding(self) -> bool:
        """True if later tokens may change the text of a token, as a comma does before it."""
        decoder = json.loads(self.backend.to_str())["decoder"] or {"type": "none"}
        types = [step["type"] for step in decoder.get("decoders", [decoder])]
        after_fuse = types[types.index("Fuse") :] if "Fuse" in types else []  # sees the whole text
        return not _CONTEXT_FREE_DECODERS.issuperset(types) or "Replace" in after_fuse

    @cached_property
    def _byte_fallback_ids(self) -> frozenset[int]:
        """Ids of single-byte tokens such as <0xE9>, whose runs are decoded together."""
        if "ByteFallback" not in json.dumps(json.loads(self.backend.to_str())["decoder"]):
            return frozenset()
        ids = (self.backend.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
        return frozenset(token_id for token_id in ids if token_id is not None)

    def stable_length(self, ids: Sequence[int], text: str) -> int:
        """Length of the prefix of the decoded `text` of `ids` that further tokens cannot change."""
        length = len(text.rstrip("\ufffd"))  # without bytes of an incomplete character
        if self._byte_fallback_ids:  # one invalid byte turns all bytes of its run to U+FFFD
            run_start = len(ids)
            while run_start and ids[run_start - 1] in self._byte_fallback_ids:
                run_start -= 1
            if run_start < len(ids):
                length = min(length, len(self.decode(ids[:run_start])))
        if self.has_contextual_decoding:
            length = min(length, max(0, text.rfind(" ")))
        return length

    def token_bytes(self) -> tuple[list[bytes], list[int]]:
        """Bytes of each token, and the ids of special tokens.

        Raises:
            UserError: the text of a token depends on its neighbors, such as spaces between words.
        """
        file = json.loads(self.backend.to_str())
        decoder = (file["decoder"] or {"type": "none"})["type"]
        if decoder not in ("ByteLevel", "Fuse"):
            raise UserError(
                "constrained decoding needs a tokenizer with tokens of fixed text: bpe, unigram, "
                f"byte or char; the text of this one's tokens depends on neighbors ({decoder})"
            )
        byte_of = {character: byte for byte, character in _bytes_to_unicode().items()}
        result, special_ids = [b""] * self.vocab_size, []
        added_ids = {token["id"] for token in file["added_tokens"] if token["special"]}
        for token, token_id in self.backend.get_vocab().items():
            if token_id in added_ids:
                special_ids.append(token_id)
            elif decoder == "ByteLevel":
                result[token_id] = bytes(byte_of[character] for character in token)
            else:
                result[token_id] = token.encode()
        return result, sorted(special_ids)

    @cached_property
    def unk_id(self) -> int | None:
        """Id of the unknown token, or None."""
        model = json.loads(self.backend.to_str())["model"]
        token = model.get("unk_token")
        unk_id: int | None = model.get("unk_id")
        return unk_id if token is None else self.backend.token_to_id(token)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens."""
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text, in parallel."""
        # The fast variant skips character offsets, which are not used.
        encode = getattr(self.backend, "encode_batch_fast", self.backend.encode_batch)
        return [list(encoding.ids) for encoding in encode(list(texts), add_special_tokens=False)]

    @cached_property
    def added_tokens(self) -> tuple[str, ...]:
        """Texts of added tokens, special ones among them, that the model of the tokenizer lacks."""
        added = self.backend.get_added_tokens_decoder().values()
        return tuple(token.content for token in added if token.content)

    @cached_property
    def _template_backend(self) -> tokenizers.Tokenizer:
        """A copy that recognizes special tokens, and whose offsets have all spaces."""
        file = {**json.loads(self.backend.to_str()), "post_processor": None}
        backend = tokenizers.Tokenizer.from_str(json.dumps(file))
        backend.encode_special_tokens = False
        return backend

    def encode_template(self, text: str) -> tokenizers.Encoding:
        """Encodes text of a chat template, in which special tokens are recognized."""
        return self._template_backend.encode(text, add_special_tokens=False)

    def add_special_tokens(self, tokens: Sequence[str]) -> None:
        """Adds special tokens to the vocabulary, those that are not in it yet."""
        self.backend.add_special_tokens(list(tokens))
        for name in ("vocab_size", "added_tokens", "_template_backend"):
            self.__dict__.pop(name, None)  # computed anew

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens; invalid UTF-8 becomes U+FFFD."""
        return str(self.backend.decode(list(ids), skip_special_tokens=True))


def _bytes_to_unicode() -> dict[int, str]:
    """Character of each byte in byte-level tokens (GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {byte: chr(byte) for byte in printable}
    return characters | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _infer_template(backend: tokenizers.Tokenizer) -> SpecialTokenTemplate | None:
    """Special tokens that the file's post-processor adds; None: it adds none."""
    return _probe_template(backend) if backend.num_special_tokens_to_add(False) else None


def _probe_template(backend: tokenizers.Tokenizer) -> SpecialTokenTemplate | None:
    """Special tokens that are added to a short text, and to a pair of it."""
    probes = ("a", "A", "1", ".", "?")
    known = [text for text in probes if backend.encode(text, add_special_tokens=False).ids]
    if not known:
        return None
    single, pair = backend.encode(known[0]), backend.encode(known[0], known[0])

    def special_positions(encoding: tokenizers.Encoding) -> list[list[int]]:
        """Positions of special tokens before, between and after the texts."""
        groups: list[list[int]] = [[]]
        last_id: int | None = None
        for position, sequence_id in enumerate(encoding.sequence_ids):
            if sequence_id is None:
                groups[-1].append(position)
            elif sequence_id != last_id:
                groups.append([])
            last_id = sequence_id
        return groups

    of_single, of_pair = special_positions(single), special_positions(pair)
    if len(of_single) != 2 or len(of_pair) != 3:
        return None
    types = pair.type_ids
    return SpecialTokenTemplate(
        [single.ids[position] for position in of_single[0]],
        [pair.ids[position] for position in of_pair[1]],
        [single.ids[position] for position in of_single[1]],
        types[of_pair[1][0]] if of_pair[1] else 0,
        types[pair.sequence_ids.index(1)],
    )


def _read_eos_token(path: Path, backend: tokenizers.Tokenizer) -> str | None:
    """EOS token in a `tokenizer_config.json`, or None."""
    try:
        config = read_json(path)
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
