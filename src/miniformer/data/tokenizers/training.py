"""Training a tokenizer on the user's own text, with Hugging Face `tokenizers`.

| kind      | a token is                           | text comes back        | trained again       |
|-----------|--------------------------------------|------------------------|---------------------|
| bpe       | a run of bytes, merged by frequency  | any                    | the same            |
| unigram   | a run of bytes, chosen by likelihood | any                    | may differ a little |
| wordpiece | a piece of a word, ## inside one     | words, but not spacing | the same            |
| word      | what is between spaces               | words seen, one space  | the same            |
| char      | a character                          | of characters seen     | the same            |
| byte      | a byte                               | any                    | the same            |

Each takes texts and a vocabulary size, special tokens included, and gives a backend that has the
boundary token.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers

from miniformer.config import UserError

EOS_TOKEN, PAD_TOKEN, UNK_TOKEN = "<|endoftext|>", "<|pad|>", "<|unknown|>"
SAMPLE_BYTES = 2**26  # of text is enough to learn from: 64 MB
_MAX_ALPHABET_SIZE = 1000  # characters that wordpiece knows; rarer ones are unknown


class TextSample:
    """The beginning of some texts, about `SAMPLE_BYTES` of it; `cut` says whether that is all.

    Args:
        texts: all of it; read anew each time that the sample is.
        most: characters at most.
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
    vocab_size = vocab_size or 10_000
    _require_vocab_size(vocab_size, 2 + 256, "bpe", "one id for each byte value")
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS_TOKEN, PAD_TOKEN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def train_unigram(texts: Iterable[str], vocab_size: int | None = None) -> tokenizers.Tokenizer:
    """A unigram language model over runs of bytes (Kudo 2018): any text decodes to itself."""
    vocab_size = vocab_size or 10_000
    _require_vocab_size(vocab_size, 2 + 256, "unigram", "one id for each byte value")
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.UnigramTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS_TOKEN, PAD_TOKEN],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return backend


def train_wordpiece(texts: Iterable[str], vocab_size: int | None = None) -> tokenizers.Tokenizer:
    """Pieces of words, as in BERT (Schuster & Nakajima 2012); runs of spaces do not come back."""
    vocab_size = vocab_size or 10_000
    words: Counter[str] = Counter()
    split = pre_tokenizers.BertPreTokenizer()
    for text in texts:
        words.update(word for word, _ in split.pre_tokenize_str(unicodedata.normalize("NFC", text)))
    characters: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            characters[character] += count
    common = sorted(characters, key=lambda each: (-characters[each], each))[:_MAX_ALPHABET_SIZE]
    alphabet = sorted(common) + ["##" + each for each in sorted(common)]
    _require_vocab_size(
        vocab_size, 3 + len(alphabet), "wordpiece", "each character, first or not, of the text"
    )
    # Trained as BPE. Its tokens are numbered in the order of a hash table, which breaks ties, but
    # for those that it is given: so it is given the whole alphabet.
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS_TOKEN, PAD_TOKEN, UNK_TOKEN, *alphabet],
        limit_alphabet=len(common),
        initial_alphabet=sorted(common),
        continuing_subword_prefix="##",
        show_progress=False,
    )
    learner = tokenizers.Tokenizer(models.BPE(unk_token=UNK_TOKEN, continuing_subword_prefix="##"))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    known = set(common)
    usual = (word for word in sorted(words) if known.issuperset(word))
    learner.train_from_iterator((" ".join([word] * words[word]) for word in usual), trainer)
    vocab = learner.get_vocab()
    backend = tokenizers.Tokenizer(models.WordPiece(vocab=vocab, unk_token=UNK_TOKEN))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = split
    backend.decoder = decoders.WordPiece()
    backend.add_special_tokens([EOS_TOKEN, PAD_TOKEN, UNK_TOKEN])
    return backend


def train_word(texts: Iterable[str], vocab_size: int | None = None) -> tokenizers.Tokenizer:
    """One id for each of the commonest words, as spaces divide them; others become unknown."""
    vocab_size = vocab_size or 10_000
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
    backend.add_special_tokens(special)  # no words of the model, so that no text spells them
    return backend


def train_byte(texts: Iterable[str], vocab_size: int | None = None) -> tokenizers.Tokenizer:
    """One id for each byte of UTF-8; nothing is learnt from the text."""
    _require_vocab_size(vocab_size, 2 + 256, "byte", "one id for each byte value")
    tokens = [EOS_TOKEN, PAD_TOKEN, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = tokenizers.Tokenizer(
        models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([EOS_TOKEN, PAD_TOKEN])
    return backend


def train_char(texts: Iterable[str], vocab_size: int | None = None) -> tokenizers.Tokenizer:
    """One id for each character seen in the text; others become one unknown token."""
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
