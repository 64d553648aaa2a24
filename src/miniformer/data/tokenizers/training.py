"""Training of tokenizers on the user's text, with Hugging Face `tokenizers`.

| kind      | token                              | decode(encode(text))      | training        |
|-----------|------------------------------------|---------------------------|-----------------|
| bpe       | byte sequence, merged by frequency | any text                  | deterministic   |
| unigram   | byte sequence, by likelihood       | any text                  | varies a little |
| wordpiece | subword, ## inside a word          | words, not spacing        | deterministic   |
| word      | text between spaces                | known words, single space | deterministic   |
| char      | character                          | known characters          | deterministic   |
| byte      | byte                               | any text                  | deterministic   |

Each function takes texts and a vocabulary size, special tokens included, and returns a backend with
the EOS token.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from miniformer.config import UserError

EOS_TOKEN, PAD_TOKEN, UNK_TOKEN = "<|endoftext|>", "<|pad|>", "<|unknown|>"
DEFAULT_VOCAB_SIZE = 10_000
SAMPLE_BYTES = 2**26  # text used for training: 64 MB
_MAX_ALPHABET_SIZE = 1000  # of wordpiece; rarer characters are unknown


class TextSample:
    """First `max_chars` characters of some texts, in whole texts.

    Args:
        texts: all texts; iterated again with each iteration of the sample.
        max_chars: limit; the text that exceeds it is the last one.

    Attributes:
        num_chars: characters yielded by the last iteration.
        truncated: whether it left texts out.
    """

    def __init__(self, texts: Iterable[str], max_chars: int = SAMPLE_BYTES) -> None:
        self.texts, self.max_chars, self.num_chars, self.truncated = texts, max_chars, 0, False

    def __iter__(self) -> Iterator[str]:
        self.num_chars, self.truncated = 0, False
        for text in self.texts:
            if self.num_chars >= self.max_chars:
                self.truncated = True
                return
            self.num_chars += len(text)
            yield text


def train_bpe(texts: Iterable[str], vocab_size: int | None = None) -> tokenizers.Tokenizer:
    """Byte-level byte-pair encoding, as in GPT-2: any text decodes to itself."""
    return _train_byte_level("bpe", models.BPE(), trainers.BpeTrainer, texts, vocab_size)


def train_unigram(texts: Iterable[str], vocab_size: int | None = None) -> tokenizers.Tokenizer:
    """A unigram language model over runs of bytes (Kudo 2018): any text decodes to itself."""
    trainer = trainers.UnigramTrainer
    return _train_byte_level("unigram", models.Unigram(), trainer, texts, vocab_size)


def _train_byte_level(
    kind: str, model: Any, trainer_class: Any, texts: Iterable[str], vocab_size: int | None
) -> tokenizers.Tokenizer:
    """Trains a model of byte sequences that starts with all byte values."""
    vocab_size = vocab_size or DEFAULT_VOCAB_SIZE
    _require_vocab_size(vocab_size, 2 + 256, kind, "one id for each byte value")
    backend = _byte_level_tokenizer(model)
    trainer = trainer_class(
        vocab_size=vocab_size,
        special_tokens=[EOS_TOKEN, PAD_TOKEN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def _byte_level_tokenizer(model: Any, use_regex: bool = True) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    backend.decoder = decoders.ByteLevel()
    return backend


def train_wordpiece(texts: Iterable[str], vocab_size: int | None = None) -> tokenizers.Tokenizer:
    """WordPiece subwords, as in BERT (Schuster & Nakajima 2012); decoding loses the spacing."""
    vocab_size = vocab_size or DEFAULT_VOCAB_SIZE
    word_counts: Counter[str] = Counter()
    split = pre_tokenizers.BertPreTokenizer()
    for text in texts:
        text = unicodedata.normalize("NFC", text)
        word_counts.update(word for word, _ in split.pre_tokenize_str(text))
    characters: Counter[str] = Counter()
    for word, count in word_counts.items():
        for character in word:
            characters[character] += count
    common = sorted(characters, key=lambda char: (-characters[char], char))[:_MAX_ALPHABET_SIZE]
    alphabet = sorted(common) + ["##" + char for char in sorted(common)]
    _require_vocab_size(
        vocab_size, 3 + len(alphabet), "wordpiece", "each character, first or not, of the text"
    )
    # Trained as BPE. Its ids follow a hash table's order, which breaks ties, except for special
    # tokens; so the whole alphabet is passed as special tokens.
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS_TOKEN, PAD_TOKEN, UNK_TOKEN, *alphabet],
        limit_alphabet=len(common),
        initial_alphabet=sorted(common),
        continuing_subword_prefix="##",
        show_progress=False,
    )
    bpe = tokenizers.Tokenizer(models.BPE(unk_token=UNK_TOKEN, continuing_subword_prefix="##"))
    bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    known = set(common)
    known_words = (word for word in sorted(word_counts) if known.issuperset(word))
    bpe.train_from_iterator((" ".join([word] * word_counts[word]) for word in known_words), trainer)
    vocab = bpe.get_vocab()
    backend = tokenizers.Tokenizer(models.WordPiece(vocab=vocab, unk_token=UNK_TOKEN))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = split
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens([EOS_TOKEN, PAD_TOKEN, UNK_TOKEN])
    return backend


def train_word(texts: Iterable[str], vocab_size: int | None = None) -> tokenizers.Tokenizer:
    """One id per word between spaces, the most frequent first; other words become unknown."""
    vocab_size = vocab_size or DEFAULT_VOCAB_SIZE
    special = [EOS_TOKEN, PAD_TOKEN, UNK_TOKEN]
    _require_vocab_size(vocab_size, 1 + len(special), "word", "one id for a word")
    seen: Counter[str] = Counter()
    split = pre_tokenizers.WhitespaceSplit()
    for text in texts:
        seen.update(word for word, _ in split.pre_tokenize_str(text))
    known = sorted(seen.keys() - set(special), key=lambda word: (-seen[word], word))
    tokens = [UNK_TOKEN, *known[: vocab_size - len(special)]]
    backend = tokenizers.Tokenizer(
        models.WordLevel(vocab={token: i for i, token in enumerate(tokens)}, unk_token=UNK_TOKEN)
    )
    backend.pre_tokenizer = split
    backend.add_special_tokens(special)  # not in the model's vocabulary: no text encodes to them
    return backend


def train_byte(texts: Iterable[str], vocab_size: int | None = None) -> tokenizers.Tokenizer:
    """One id for each byte of UTF-8; the text is not used."""
    _require_vocab_size(vocab_size, 2 + 256, "byte", "one id for each byte value")
    tokens = [EOS_TOKEN, PAD_TOKEN, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    model = models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[])
    backend = _byte_level_tokenizer(model, use_regex=False)
    backend.add_special_tokens([EOS_TOKEN, PAD_TOKEN])
    return backend


def train_char(texts: Iterable[str], vocab_size: int | None = None) -> tokenizers.Tokenizer:
    """One id for each character of the text; other characters become the unknown token."""
    seen: set[str] = set()
    for text in texts:
        seen.update(text)
    tokens = [EOS_TOKEN, PAD_TOKEN, UNK_TOKEN, *sorted(seen)]
    _require_vocab_size(
        vocab_size, len(tokens), "char", f"one id for each of the text's {len(seen)} characters"
    )
    vocab = {token: i for i, token in enumerate(tokens)}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab=vocab, unk_token=UNK_TOKEN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([EOS_TOKEN, PAD_TOKEN, UNK_TOKEN])
    return backend


def _require_vocab_size(vocab_size: int | None, minimum: int, kind: str, reason: str) -> None:
    if vocab_size is not None and vocab_size < minimum:
        raise UserError(
            f"vocab_size={vocab_size} is too small for a {kind} tokenizer, which needs {minimum}: "
            f"{reason} and its special tokens"
        )
