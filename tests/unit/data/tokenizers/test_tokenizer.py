import json

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from miniformer import cli
from miniformer.config import UserError
from miniformer.data.tokenizers.tokenizer import EOS_TOKEN, Tokenizer
from miniformer.data.tokenizers.training import TextSample
from miniformer.tasks.common.input_encoding import encode_inputs
from miniformer.tasks.language_modeling import LanguageModeling
from tests.kit import VERSE, run_python

ALL = ("bpe", "unigram", "wordpiece", "word", "char", "byte")
BYTE_LEVEL = {kind: Tokenizer.train(kind, [VERSE * 3], 300) for kind in ("bpe", "byte", "unigram")}


@pytest.mark.catches("decoded_text_is_stripped")
@pytest.mark.parametrize("kind", BYTE_LEVEL)
@given(st.text(st.characters(codec="utf-8")))
def test_byte_level_tokenizer_round_trip_of_any_text(kind, text):
    tokenizer = BYTE_LEVEL[kind]
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.text(st.sampled_from(sorted(set(VERSE)))))
def test_char_tokenizer_has_one_id_a_character(text):
    tokenizer = Tokenizer.train("char", [VERSE])
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text


@given(st.text(st.characters(codec="utf-8")))
def test_byte_tokenizer_has_one_id_a_byte(text):
    assert len(BYTE_LEVEL["byte"].encode(text)) == len(text.encode())


@pytest.mark.parametrize("kind", ALL)
def test_tokenizer_never_encodes_text_as_a_special_token(kind, tmp_path):
    text = f"{EOS_TOKEN}<|pad|>"
    tokenizer = Tokenizer.train(kind, [text])
    tokenizer.save(tmp_path / "tokenizer.json")
    for candidate in (tokenizer, Tokenizer.from_path(tmp_path / "tokenizer.json")):
        ids = candidate.encode(text)
        assert candidate.eos_id not in ids
        assert candidate.decode(ids).replace(" ", "") == text  # wordpiece puts spaces between
        assert candidate.encode_batch([text, ""]) == [ids, []]


def test_tokenizer_trained_on_more_text_gives_fewer_tokens():
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
def test_tokenizer_rejects_a_vocab_size_that_is_too_small(kind, size, message):
    with pytest.raises(UserError, match=message):
        Tokenizer.train(kind, ["ab"], size)


@pytest.mark.parametrize("content", [None, "{}", "not json", '{"model": {"type": "BPE"}}'])
def test_tokenizer_error_names_a_broken_file(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        Tokenizer.from_path(path)


def foreign(folder, *special, config=None):
    """A third-party tokenizer with its own special tokens."""
    vocab = {token: index for index, token in enumerate(["a", "b", "?", *special])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab=vocab, unk_token="?"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.add_special_tokens(list(special))
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.catches("declared_end_of_text_is_not_read")
@pytest.mark.parametrize(
    ("special", "config", "expected"),
    [
        (["</s>", "<s>"], None, "</s>"),
        (["[CLS]", "[SEP]"], {"sep_token": "[SEP]"}, "[SEP]"),
        (["<s>", "<end>"], {"bos_token": "<s>", "eos_token": {"content": "<end>"}}, "<end>"),
        (["<s>", "</s>"], {"bos_token": "<s>"}, "<s>"),
        (["</s>"], {"eos_token": "<not there>"}, "</s>"),
        ([], None, EOS_TOKEN),
    ],
)
def test_eos_of_a_foreign_tokenizer(tmp_path, special, config, expected):
    folder = foreign(tmp_path / "theirs", *special, config=config)
    tokenizer = Tokenizer.from_path(folder)
    assert tokenizer.eos_token == expected
    assert tokenizer.eos_id == tokenizer.backend.token_to_id(expected)
    assert (tokenizer.warning is None) == bool(special)
    assert tokenizer.eos_id not in tokenizer.encode(f"a {expected} b")
    # A saved tokenizer loads unchanged, with its EOS token.
    (tmp_path / "ours").mkdir()
    tokenizer.save(tmp_path / "ours" / "tokenizer.json")
    again = Tokenizer.from_path(tmp_path / "ours")
    assert (again.eos_token, again.eos_id) == (expected, tokenizer.eos_id)
    assert again.warning is None


def test_tokenizer_file_gives_the_same_ids_in_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    for kind in ALL:
        (tmp_path / kind).mkdir()
        tokenizer = Tokenizer.train(kind, [VERSE * 3], 300)
        tokenizer.save(tmp_path / kind / "tokenizer.json")
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / kind)
        assert theirs.eos_token_id == tokenizer.eos_id
        assert theirs(VERSE, add_special_tokens=False)["input_ids"] == tokenizer.encode(VERSE)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no tokenizer.json in it; transformers writes one"),
        (["vocab.txt"], r"no tokenizer.json in it \(it has vocab.txt\)"),
        (["spiece.model", "x"], r"no tokenizer.json in it \(it has spiece.model\)"),
    ],
)
def test_load_of_a_directory_without_a_tokenizer_is_refused(tmp_path, names, message):
    for name in names:
        (tmp_path / name).write_text("")
    with pytest.raises(UserError, match=message):
        Tokenizer.from_path(tmp_path)


TRAIN = """
import sys
from miniformer.data.tokenizers.tokenizer import Tokenizer
texts = [f"word{n % 37} other{n % 11} the cat sat {n}" for n in range(500)]
sys.stdout.write(Tokenizer.train(sys.argv[1], texts, 400).backend.to_str())
"""


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind != "unigram"])
def test_tokenizer_training_is_deterministic(kind):
    first, again = (run_python("-c", TRAIN, kind).stdout for _ in range(2))
    assert first
    assert first == again


@pytest.mark.parametrize("kind", ["bpe", "unigram", "wordpiece", "word"])
def test_tokenizer_vocabulary_is_at_most_vocab_size(kind):
    texts = [f"word{n} other{n * 7}" for n in range(500)]
    assert 250 <= Tokenizer.train(kind, texts, 300).vocab_size <= 300


def test_wordpiece_tokenizer_decodes_words():
    tokenizer = Tokenizer.train("wordpiece", [VERSE * 3], 300)
    assert (
        tokenizer.decode(tokenizer.encode("the cat sang on the mat")) == "the cat sang on the mat"
    )
    unknown = tokenizer.backend.token_to_id("<|unknown|>")
    assert unknown in tokenizer.encode("the 猫 sat")
    tokens = [tokenizer.backend.id_to_token(i) for i in tokenizer.encode("catmat")]
    assert "".join(tokens).replace("##", "") == "catmat"
    assert all(token.startswith("##") for token in tokens[1:])


def test_word_tokenizer_has_one_id_for_each_common_word():
    tokenizer = Tokenizer.train("word", ["I_RUN  a\tb a", "a b <|pad|>"], 5)
    ids = tokenizer.encode(" a b\nI_RUN  a <|pad|>")
    unknown = tokenizer.backend.token_to_id("<|unknown|>")
    assert len(ids) == 5
    assert ids[0] == ids[3]
    assert [ids[2], ids[4]] == [unknown, unknown]  # the vocabulary has room for two words
    assert tokenizer.decode(ids) == "a b a"
    full = Tokenizer.train("word", ["I_RUN  a\tb a"])
    assert full.decode(full.encode("a  I_RUN\n b")) == "a I_RUN b"
    assert full.vocab_size == 6


@pytest.mark.catches("tokenizer_learns_from_all_of_a_large_text")
def test_tokenizer_trains_on_the_first_part_of_large_data():
    sample = TextSample(iter(["abc"] * 10), max_chars=7)
    assert list(sample) == ["abc"] * 3
    assert sample.truncated
    again = TextSample(["abc"] * 10, max_chars=7)
    assert list(again) == list(again) == ["abc"] * 3
    full = TextSample(["abc"] * 2, max_chars=7)
    assert list(full) == ["abc"] * 2
    assert not full.truncated


def tokenizer_command(*arguments):
    return cli.main(["tokenizer", "train", *map(str, arguments)])


@pytest.mark.catches("tokenizer_learns_from_the_first_field_only")
def test_tokenizer_command_trains_on_every_text_of_every_record(tmp_path, capsys):
    records = [
        {"text": "aa"},
        {"input": ["bb", "cc"], "label": 1},
        {"source": "dd", "target": "ee"},
    ]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
    out = tmp_path / "mine"
    assert tokenizer_command(data, "--kind", "char", "--out", out) == 0
    output = capsys.readouterr().out
    assert "char: 8 ids" in output
    assert f"--tokenizer {out}" in output
    tokenizer = Tokenizer.from_path(out)
    assert len(set(tokenizer.encode("abcde"))) == 5
    assert tokenizer_command(data, "--out", out) == 2
    assert "already has a tokenizer; use another directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        ('{"text": "a"}', ["--kind", "bqe"], "unknown kind 'bqe' (did you mean 'bpe'?)"),
        ('{"text": "a"}', ["--vocab_size", "10"], "vocab_size=10 is too small for a bpe"),
        ('{"text": "a"}', ["--vocabsize", "10"], "unknown flag --vocabsize; did you mean --vo"),
        ('{"text": "a"}\n{"txt": "a"}', [], "data.jsonl:2: the record has no text; it needs"),
        ('{"text": ""}', [], "data.jsonl: no text found"),
        ("", [], "data.jsonl: the file is empty"),
        (None, [], "data.jsonl: No such file"),
    ],
)  # fmt: skip
def test_tokenizer_command_user_errors(tmp_path, capsys, content, more, message):
    data = tmp_path / "data.jsonl"
    if content is not None:
        data.write_text(content)
    assert tokenizer_command(data, "--out", tmp_path / "out", *more) == 2
    err = capsys.readouterr().err
    assert message in err
    assert not (tmp_path / "out").exists()


def test_foreign_tokenizer_neither_truncates_nor_pads(tmp_path):
    backend = Tokenizer.train("byte", []).backend
    backend.enable_truncation(4)
    backend.enable_padding(length=8)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_path(tmp_path / "tokenizer.json")
    assert [len(ids) for ids in tokenizer.encode_batch(["a", "abcdef"])] == [1, 6]


def test_vocab_size_covers_the_largest_id():
    """Ids of third-party files may have gaps."""
    vocab = {EOS_TOKEN: 0, "a": 1, "b": 900}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab=vocab, unk_token=EOS_TOKEN))
    assert Tokenizer(backend).vocab_size == 901


def test_tokenizer_reads_the_vocabulary_once():
    """The backend builds a dict of all tokens, which takes longer than encoding a text."""

    class Counting:
        def __init__(self, backend):
            self.backend, self.calls = backend, 0

        def __getattr__(self, name):
            return getattr(self.backend, name)

        def get_vocab(self):
            self.calls += 1
            return self.backend.get_vocab()

    tokenizer = Tokenizer.train("byte", [])
    tokenizer.backend = Counting(tokenizer.backend)
    encode_inputs([{"input": "ab"}] * 100, "text", tokenizer, 16)
    assert tokenizer.backend.calls == 1


def test_tokenizer_command_trains_on_the_given_fields(tmp_path, capsys):
    data = tmp_path / "pairs.jsonl"
    data.write_text('{"source": "abc", "target": "xyz"}\n')
    for field, letters in (("source", "abc"), ("target", "xyz")):
        out = tmp_path / field
        fields = ("--fields", f"[{field}]", "--kind", "char", "--out", out)
        assert tokenizer_command(data, *fields) == 0
        tokenizer = Tokenizer.from_path(out)
        assert all(tokenizer.decode(tokenizer.encode(letter)) == letter for letter in letters)
        assert tokenizer.vocab_size <= 3 + len(letters)
    assert tokenizer_command(data, "--fields", "[text]", "--out", tmp_path / "no") == 2
    assert "it needs a string in one of 'text'" in capsys.readouterr().err


def templated(single, pair):
    """A tokenizer with a template, as in Hugging Face directories."""
    backend = Tokenizer.train("byte", [VERSE]).backend
    backend.add_special_tokens(["<s>", "</s>"])
    tokens = [(name, backend.token_to_id(name)) for name in ("<s>", "</s>")]
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=tokens
    )
    return Tokenizer(backend, "</s>")


@pytest.mark.catches("template_of_a_tokenizer_is_ignored")
def test_special_token_template_of_single_texts_and_pairs():
    tokenizer = templated("<s> $A </s>", "<s> $A </s> $B:1 </s>:1")
    begin, end = (tokenizer.backend.token_to_id(name) for name in ("<s>", "</s>"))
    frame = tokenizer.input_template
    assert (frame.prefix, frame.separator, frame.suffix) == ([begin], [end], [end])
    assert (frame.separator_type_id, frame.second_type_id) == (0, 1)
    assert tokenizer.sequence_template == frame
    plain = Tokenizer.train("byte", [VERSE])
    boundary = [plain.eos_id]
    assert plain.input_template[:3] == (boundary, boundary, [])
    assert plain.sequence_template[:3] == ([], [], boundary)


@pytest.mark.catches("documents_have_no_boundary")
def test_document_separator_of_a_template():
    tokenizer = templated("<s> $A", "<s> $A <s> $B:1")
    begin, end = (tokenizer.backend.token_to_id(name) for name in ("<s>", "</s>"))
    records = [{"text": "ab"}]
    full = [begin, *tokenizer.encode("ab"), end]
    task = LanguageModeling()
    assert task.encode(records, tokenizer, 64)[0]["ids"].tolist() == full
    assert task.encode_prompts(["ab"], tokenizer) == [full[:-1]]
    prefix = task.for_model("seq2seq").encode(records, tokenizer, 64)
    assert prefix[0]["ids"].tolist() == full
    running = LanguageModeling(prepend_bos=False)
    assert running.encode(records, tokenizer, 64)[0]["ids"].tolist() == full[:-1]
    assert running.encode_prompts(["ab", ""], tokenizer) == [tokenizer.encode("ab"), [begin]]


@pytest.mark.parametrize("room", [5, 6, 30])
def test_truncation_keeps_the_special_tokens(room):
    tokenizer = templated("<s> $A </s>", "<s> $A </s> $B:1 </s>:1")
    begin, end = (tokenizer.backend.token_to_id(name) for name in ("<s>", "</s>"))
    (text,) = encode_inputs([{"input": "abcdefgh"}], "text", tokenizer, room)
    (pair,) = encode_inputs([{"input": ["abcd", "efgh"]}], "pair", tokenizer, room)
    for example, num_kept in ((text, min(8, room - 2)), (pair, min(8, room - 3))):
        ids = example["inputs"].tolist()
        assert (ids[0], ids[-1]) == (begin, end)
        assert len(ids) <= room
        assert example["cut"] == 8 - num_kept
    types = pair["token_types"].tolist()
    assert types == sorted(types)
    assert types.count(0) == 1 + pair["inputs"].tolist().index(end)
