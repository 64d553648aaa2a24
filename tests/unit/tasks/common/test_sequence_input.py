"""Inputs longer than a model reads: reported one by one, or cut as training cuts them."""

import io
import json

import pytest
import torch

from miniformer import cli
from miniformer.checkpoint.pipeline import Pipeline
from miniformer.config import GenerationConfig, InputError, UserError
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.model.seq2seq import Seq2SeqTransformer
from miniformer.tasks.classification import Classification
from miniformer.tasks.language_modeling import LanguageModeling
from miniformer.tasks.masked_lm import MaskedLM
from miniformer.tasks.prefix_language_modeling import PrefixLanguageModeling
from miniformer.tasks.regression import Regression
from miniformer.tasks.seq2seq import Seq2Seq
from tests.kit import tiny_model

BYTES = Tokenizer.train("byte", [])
LONGEST = 12  # tokens that the models here read
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def pipeline(task, model=None, **changes):
    fields = {"vocab_size": 258, "max_seq_len": LONGEST, "causal": False, **changes}
    fields |= task.model_config({}, None)
    built = tiny_model(**fields) if model is None else tiny_model(model=model, **fields)
    generation = GenerationConfig(temperature=0.0, max_new_tokens=4, eos_id=BYTES.eos_id)
    tokenizer = BYTES if task.reads_text() else None
    return Pipeline(built, tokenizer, task=task, generation=generation)


# Of each kind: inputs that are too long, and what of them fits.
TEXT = pipeline(Classification(classes=["x", "y"], input_kind="text"))
PAIR = pipeline(Regression(target_mean=0.0, target_std=1.0, input_kind="pair"), vocab_size=258)
VECTORS = pipeline(
    Classification(
        classes=[0, 1], input_kind="features", input_dim=1, feature_means=[3.0],
        feature_stds=[2.0],
    )
)  # fmt: skip
MASKED = pipeline(MaskedLM(input_kind="text"))
TRANSLATION = pipeline(Seq2Seq(), Seq2SeqTransformer)
CASES = {
    "text": (TEXT, LETTERS, LETTERS[: LONGEST - 1]),
    "first": (PAIR, [LETTERS, "xyz"], [LETTERS[:7], "xyz"]),
    "second": (PAIR, ["xyz", LETTERS], ["xyz", LETTERS[:7]]),
    "both": (PAIR, [LETTERS, LETTERS[::-1]], [LETTERS[:5], LETTERS[::-1][:5]]),
    "features": (VECTORS, [[float(n)] for n in range(30)], [[float(n)] for n in range(LONGEST)]),
    "masked": (MASKED, "ab[MASK]" + LETTERS, "ab[MASK]" + LETTERS[: LONGEST - 4]),
    "source": (TRANSLATION, LETTERS, LETTERS[: LONGEST - 1]),
}


@pytest.mark.parametrize(
    ("m", "long", "short"),
    [
        pytest.param(
            *case,
            id=name,
            marks=[pytest.mark.catches("truncate_keeps_the_end_of_inputs")]
            if name in ("text", "features")
            else [],
        )
        for name, case in CASES.items()
    ],
)
def test_predict_truncates_as_training_does(m, long, short):
    assert m.predict([short, long], truncate=True) == m.predict([short, short])
    with pytest.raises(InputError, match=r"^input 1 is .* shorten it, or truncate it$") as caught:
        m.predict([short, long])  # what just fits is no error
    assert list(caught.value.problems) == [1]


@pytest.mark.parametrize("name", ["text", "first", "features"])
@pytest.mark.catches("long_inputs_are_cut_in_any_case")
def test_embed_truncates_as_training_does(name):
    m, long, short = CASES[name]
    torch.testing.assert_close(m.embed([short, long], truncate=True), m.embed([short, short]))
    with pytest.raises(InputError, match=r"^input 1 is "):
        m.embed([short, long])


def test_predict_names_all_inputs_that_have_problems():
    with pytest.raises(
        InputError, match=r"^input 1 is .*\(and 1 more inputs have problems\)$"
    ) as e:
        TEXT.predict(["a", LETTERS, "b", LETTERS])
    assert list(e.value.problems) == [1, 3]
    with pytest.raises(InputError) as e:
        TEXT.predict(["a", 3, "b", ["c", "d"], "\ud800"])
    assert list(e.value.problems) == [4]  # inputs of a wrong type come first
    with pytest.raises(InputError) as e:
        TEXT.predict(["a", 3, "b", ["c", "d"]])
    assert list(e.value.problems) == [1, 3]


def test_predict_of_a_series_needs_its_last_vector():
    task = Regression(
        target_mean=0.0,
        target_std=1.0,
        target_delta_of=0,
        scale_epsilon=1.0,
        input_kind="features",
        input_dim=1,
    )
    m = pipeline(task)
    with pytest.raises(InputError, match="input 0 is 30 long; the model reads at most 12; shorten"):
        m.predict([[[float(n)] for n in range(30)]], truncate=True)


def test_predict_rejects_a_mask_that_is_truncated():
    with pytest.raises(InputError, match=r"input 0 has no \[MASK\] within the 12 tokens that"):
        MASKED.predict([LETTERS + "[MASK]"], truncate=True)


@pytest.mark.catches("truncate_keeps_the_beginning_of_prompts")
def test_generate_truncates_a_prompt_at_its_beginning():
    m = pipeline(LanguageModeling(prepend_bos=False), causal=True)
    expected = m.generate(LETTERS[-8:])
    assert m.generate(LETTERS, truncate=True) == expected  # 12 tokens less 4 new ones
    assert "".join(m.stream(LETTERS, truncate=True)) == expected
    assert [text for text, _ in m.generate_outputs([LETTERS], truncate=True)] == [expected]
    with pytest.raises(UserError, match="exceed max_seq_len=12"):
        m.generate(LETTERS)


def test_generate_truncates_sources():
    m, long, short = CASES["source"]
    assert m.generate(long, truncate=True) == m.generate(short)
    assert m.score(["xy"], [long], truncate=True) == m.score(["xy"], [short])
    prefix = pipeline(PrefixLanguageModeling(prepend_bos=False), Seq2SeqTransformer)
    assert prefix.generate(LETTERS, truncate=True) == prefix.generate(LETTERS[-LONGEST:])


@pytest.fixture
def saved(tmp_path):
    TEXT.save(tmp_path / "model")
    return tmp_path / "model"


def predicted(monkeypatch, text, *arguments):
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    return cli.main(["predict", *map(str, arguments)])


@pytest.mark.catches("one_bad_input_stops_the_others")
def test_predict_command_reports_lines_and_answers_the_others(saved, monkeypatch, capsys):
    lines = ['{"input": "fine"}', "", json.dumps(LETTERS), '"dull"', "3"]
    text = "\ufeff" + "\n".join(lines) + "\n"
    assert predicted(monkeypatch, text, saved, "-") == 2
    out, err = capsys.readouterr()
    expected = TEXT.predict(["fine", "dull"])
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row and row["label"] for row in rows] == [
        expected[0]["label"], None, expected[1]["label"], None,
    ]  # fmt: skip
    assert err.splitlines() == [
        "miniformer: error: standard input:3: is 27 long; the model reads at most 12; shorten it, "
        "or truncate it",
        "miniformer: error: standard input:5: must be a string, two strings or a list of vectors, "
        "not an integer",
        "miniformer: 2 of 4 inputs have errors; their lines are null",
    ]
    assert predicted(monkeypatch, text, saved, "-", "--truncate") == 2  # the number is none still
    out, err = capsys.readouterr()
    expected = TEXT.predict(["fine", LETTERS[:11], "dull"])
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row and row["label"] for row in rows] == [*(x["label"] for x in expected), None]
    assert err.count("\n") == 2


def test_predict_command_with_nothing_to_answer_prints_a_null_line(saved, capsys):
    assert cli.main(["predict", str(saved), LETTERS]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("miniformer: error: input 'abc")) == ("null\n", 1)
    assert cli.main(["predict", str(saved), LETTERS, "--truncate"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["label"] == TEXT.predict(LETTERS[:11])["label"]


def test_predict_command_refuses_lines_that_end_in_carriage_returns(saved, monkeypatch, capsys):
    assert predicted(monkeypatch, '"a"\r\n"b"\r"c"\n', saved, "-") == 2
    message = "standard input:2: lines end in carriage returns alone"
    assert message in capsys.readouterr().err
    assert predicted(monkeypatch, '"a"\r\n"b"\r\n', saved, "-") == 0


@pytest.mark.catches("lines_of_inputs_end_at_any_separator")
def test_predict_command_splits_lines_at_line_feeds_only(saved, monkeypatch, capsys):
    text = '"a\u2028b"\n"c\u0085"\n'
    assert predicted(monkeypatch, text, saved, "-") == 0
    out = capsys.readouterr().out.split("\n")[:-1]
    expected = TEXT.predict(["a\u2028b", "c\u0085"])
    scores = [json.loads(line)["score"] for line in out]
    assert scores == pytest.approx([answer["score"] for answer in expected], rel=1e-5)
