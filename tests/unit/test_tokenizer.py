import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from miniformer.config import UserError
from miniformer.data.tokenizer import BOUNDARY, Tokenizer
from tests.kit import VERSE

BYTE_LEVEL = {kind: Tokenizer.train(kind, [VERSE * 3], 300) for kind in ("bpe", "byte")}


@pytest.mark.parametrize("kind", BYTE_LEVEL)
@given(st.text(st.characters(codec="utf-8")))
def test_byte_level_tokenizers_give_any_text_back(kind, text):
    tokenizer = BYTE_LEVEL[kind]
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.text(st.sampled_from(sorted(set(VERSE)))))
def test_char_gives_known_text_back_one_id_a_character(text):
    tokenizer = Tokenizer.train("char", [VERSE])
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text


@given(st.text(st.characters(codec="utf-8")))
def test_byte_has_one_id_a_byte(text):
    assert len(BYTE_LEVEL["byte"].encode(text)) == len(text.encode())


@pytest.mark.parametrize("kind", ["bpe", "byte", "char"])
def test_text_never_becomes_a_special_token(kind, tmp_path):
    text = f"{BOUNDARY}<|pad|>"
    tokenizer = Tokenizer.train(kind, [text])
    tokenizer.save(tmp_path / "tokenizer.json")
    for candidate in (tokenizer, Tokenizer.from_file(tmp_path / "tokenizer.json")):
        ids = candidate.encode(text)
        assert candidate.boundary_id not in ids
        assert candidate.decode(ids) == text
        assert candidate.encode_batch([text, ""]) == [ids, []]


def test_training_on_more_text_makes_fewer_tokens():
    assert len(BYTE_LEVEL["bpe"].encode(VERSE)) < len(VERSE.encode()) * 0.8


def test_unknown_characters_are_one_token_each():
    tokenizer = Tokenizer.train("char", ["ab"])
    ids = tokenizer.encode("aXYb")
    assert len(ids) == 4
    assert ids[1] == ids[2] == tokenizer.backend.token_to_id("<|unknown|>")


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [
        ("bpe", 100, "vocab_size=100 is too small for a bpe tokenizer, which needs 258"),
        ("byte", 257, "vocab_size=257 is too small for a byte tokenizer, which needs 258"),
        ("char", 4, "vocab_size=4 is too small for a char tokenizer, which needs 5: one id for"),
    ],
)
def test_a_vocabulary_too_small_is_refused(kind, size, message):
    with pytest.raises(UserError, match=message):
        Tokenizer.train(kind, ["ab"], size)


@pytest.mark.parametrize("content", [None, "{}", "not json", '{"model": {"type": "BPE"}}'])
def test_a_broken_tokenizer_file_is_named(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        Tokenizer.from_file(path)


def test_a_tokenizer_without_boundary_is_refused(tmp_path):
    import tokenizers

    path = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(path))
    with pytest.raises(UserError, match=r"the tokenizer has no boundary token"):
        Tokenizer.from_file(path)


def test_a_foreign_file_neither_cuts_nor_fills_texts(tmp_path):
    backend = Tokenizer.train("byte", []).backend
    backend.enable_truncation(4)
    backend.enable_padding(length=8)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_file(tmp_path / "tokenizer.json")
    assert [len(ids) for ids in tokenizer.encode_batch(["a", "abcdef"])] == [1, 6]


def test_the_vocabulary_reaches_to_the_largest_id():
    """Ids of foreign files may have gaps."""
    vocab = {BOUNDARY: 0, "a": 1, "b": 900}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab=vocab, unk_token=BOUNDARY))
    assert Tokenizer(backend).vocab_size == 901
