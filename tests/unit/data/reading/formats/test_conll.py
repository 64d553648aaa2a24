"""Sentences of CoNLL-U and CoNLL files."""

import pytest

from miniformer.config import UserError
from miniformer.data.reading.mapping import FieldMapping
from miniformer.data.reading.records import TEXT_SCHEMA, JSONLinesDataset, RecordError

TAGGED = {"tokens": list, "tags": list}
CONLLU = """# sent_id = one
# text = vámonos al mar
1-2\tvámonos\t_\t_\t_\t_\t_\t_\t_\t_
1\tvamos\tir\tVERB\tV\tMood=Imp\t0\troot\t_\t_
2\tnos\tnosotros\tPRON\tP\t_\t1\tobj\t_\t_
3-4\tal\t_\t_\t_\t_\t_\t_\t_\t_
3\ta\ta\tADP\tA\t_\t5\tcase\t_\t_
4\tel\tel\tDET\tD\t_\t5\tdet\t_\t_
5\tmar\tmar\tNOUN\tN\t_\t1\tobl\t_\t_
5.1\tvamos\tir\tVERB\t_\t_\t_\t_\t_\t_

# text = sí
1\tsí\tsí\tINTJ\t_\t_\t0\troot\t_\t_
"""


def write(tmp_path, content, name):
    (tmp_path / name).write_bytes(content.encode())
    return tmp_path / name


def read(path, fields=TAGGED, **settings):
    return list(JSONLinesDataset(path, fields, mapping=FieldMapping(**settings)))


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.catches("ranges_of_conllu_are_tokens", "tags_of_conllu_are_xpos")
def test_conllu_tokens_are_words_of_the_tree(tmp_path, line_end):
    path = write(tmp_path, CONLLU.replace("\n", line_end), "a.conllu")
    first, second = read(path)
    assert first == {
        "sent_id": "one",
        "text": "vámonos al mar",
        "tokens": ["vamos", "nos", "a", "el", "mar"],
        "tags": ["VERB", "PRON", "ADP", "DET", "NOUN"],
    }
    assert second["tags"] == ["INTJ"]
    assert read(path, TEXT_SCHEMA)[1]["text"] == "sí"
    lemmas = read(path, input_field="lemma", label_field="deprel")[0]
    assert lemmas["tokens"] == ["ir", "nosotros", "a", "el", "mar"]
    assert lemmas["tags"] == ["root", "obj", "case", "det", "obl"]


CONLL = "-DOCSTART- -X- O\n\nEU NNP B-ORG\nrejects VBZ O\n\n\n-DOCSTART- -X- O\n\n#tag NN O\n\n"


@pytest.mark.parametrize("name", ["a.conll", "a.bio"])
@pytest.mark.catches("marks_of_documents_are_sentences")
def test_conll_has_tokens_first_and_tags_last(tmp_path, name):
    path = write(tmp_path, CONLL, name)
    expected = [
        {"tokens": ["EU", "rejects"], "tags": ["B-ORG", "O"]},
        {"tokens": ["#tag"], "tags": ["O"]},
    ]
    assert read(path) == expected
    data = JSONLinesDataset(path, TAGGED)
    assert [data.location(i) for i in (0, 1)] == [f"{path}:3", f"{path}:9"]
    assert read(path, label_field="2")[0]["tags"] == ["NNP", "VBZ"]
    named = {"columns": "token,pos,ner", "label_field": "pos", "input_field": "token"}
    assert read(path, **named)[0]["tags"] == ["NNP", "VBZ"]
    assert read(path, columns="a,b,c") == expected
    path = write(tmp_path, "New York\tB-LOC\nwins\tO\n", "tabs.conll")
    assert read(path) == [{"tokens": ["New York", "wins"], "tags": ["B-LOC", "O"]}]
    path = write(tmp_path, "no\ntags\n", "plain.conll")
    assert read(path, {"tokens": list}) == [{"tokens": ["no", "tags"]}]


@pytest.mark.parametrize(
    ("name", "content", "settings", "message"),
    [
        ("a.conllu", CONLLU + "2\tx\ty\n", {}, "a.conllu:14: the line has 3 columns, CoNLL-U has "
         "10, separated by tabs; fix the line (the line: '2\\tx\\ty')"),
        ("a.conllu", CONLLU + "x" + "\t_" * 9, {}, "a.conllu:14: the id 'x' is no number"),
        ("a.conllu", "# text = x\n\n", {}, "a.conllu:1: the sentence has comments and no token"),
        ("a.conll", "a O\n\nb O\nc\n", {}, "a.conll:4: the line has 1 column; a token and its tag"),
        ("a.conll", "a X O\nb O\n", {}, "a.conll:2: the line has 2 columns, the first line of the "
         "sentence has 3"),
        ("a.conll", "a O\n", {"label_field": "3"}, "a.conll:1: the line has 2 columns; there is "
         "no column 3"),
        ("a.conllu", CONLLU.replace("_", "\0", 1), {}, "of the line is NUL, which no text has"),
        ("a.conll", "a O\n\nb O\nc\0 O\n", {}, "a.conll:4: character 2 of the line is NUL"),
        ("a.conll", "a O\n", {"label_field": "ner"}, "label_field: there is no column 'ner'"),
        ("a.conllu", CONLLU, {"label_field": "pos"}, "there is no column 'pos'; the columns are "
         "id, form, lemma, upos, xpos"),
    ],
)  # fmt: skip
def test_broken_lines_are_named(tmp_path, name, content, settings, message):
    with pytest.raises(UserError) as caught:
        read(write(tmp_path, content, name), **settings)
    assert message in str(caught.value)


def test_conll_for_a_task_of_texts_names_the_task(tmp_path):
    path = write(tmp_path, CONLL, "a.conll")
    with pytest.raises(UserError, match="no input and label; set task='token_classification'"):
        read(path, {"input": str, "label": str})
    with pytest.raises(RecordError, match=r"a.conll:3: the record has no 'text'"):
        read(path, TEXT_SCHEMA)
