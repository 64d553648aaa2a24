"""The runner of exported folders equals the pipeline: texts, scores, classes, values, messages."""

import json

import numpy as np
import pytest

from miniformer import Pipeline, Seq2SeqTransformer, Tokenizer
from miniformer.exporters.onnx.runner import run
from miniformer.tasks.classification import Classification
from miniformer.tasks.embedding import EmbeddingTask
from miniformer.tasks.feature_seq2seq import FeatureSeq2Seq
from miniformer.tasks.language_modeling import LanguageModeling
from miniformer.tasks.masked_lm import MaskedLM
from miniformer.tasks.multilabel_classification import MultiLabelClassification
from miniformer.tasks.ordinal_regression import OrdinalRegression
from miniformer.tasks.prefix_language_modeling import PrefixLanguageModeling
from miniformer.tasks.regression import Regression
from miniformer.tasks.seq2seq import Seq2Seq
from tests.kit import VERSE, tiny_model
from tests.kit.exports import runner_model, write_folder

PROMPTS = ["The cat", "a", "", "Nobody knew why the bird sang", "dog sat by", "é 漢字"]
PAIRS = [["The cat sat", "The cat sang"], ["a", "the cat sat by the door, the bird sang"], ["", ""]]
SCORE_TOLERANCE = 1e-4


def make_tokenizer(kind="bpe"):
    return Tokenizer.train(kind, [VERSE] * 3, 300 if kind == "bpe" else None)


def make_pipeline(task, tokenizer=None, model=None, **changes):
    tokenizer = tokenizer or make_tokenizer()
    changes = {"vocab_size": tokenizer.vocab_size, "max_seq_len": 64, **changes}
    if model is None:
        return Pipeline(tiny_model(**changes), tokenizer, task=task)
    return Pipeline(tiny_model(model=model, causal=False, **changes), tokenizer, task=task)


def compare_texts(pipeline, runner, prompts, **options):
    expected = pipeline.generate_outputs(prompts, **options)
    actual = runner.generate_outputs(prompts, **options)
    assert [text for text, _ in actual] == [text for text, _ in expected]
    assert [output.tokens for _, output in actual] == [output.tokens for _, output in expected]
    scores = zip(actual, expected, strict=True)
    assert max(abs(x.score - y.score) for (_, x), (_, y) in scores) < SCORE_TOLERANCE


@pytest.mark.catches(
    "masked_past_is_attended", "rows_end_in_different_columns", "temperature_after_the_filters",
    "rows_take_the_past_of_ended_rows", "prompt_counts_as_new",
)  # fmt: skip
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"temperature": 0.0, "stop_strings": ["he", "q"]},
        {"temperature": 0.0, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
        {"temperature": 0.0, "frequency_penalty": 0.5, "presence_penalty": 0.2},
        {"temperature": 0.7, "seed": 3, "top_k": 20, "top_p": 0.8, "num_return_sequences": 3},
        {"temperature": 1.5, "seed": 4, "min_p": 0.02, "min_new_tokens": 9},
        {"num_beams": 4, "num_return_sequences": 3, "repetition_penalty": 1.2},
    ],
)
def test_texts_of_a_causal_model(tmp_path, monkeypatch, options):
    pipeline = make_pipeline(LanguageModeling(), position="learned", sliding_window=5)
    # Ids that end a text often.
    ends = {"stop_token_ids": [*range(0, 300, 12)]} if "min_p" in options else {}
    runner = runner_model(pipeline, tmp_path / "out", monkeypatch)
    compare_texts(pipeline, runner, PROMPTS * 6, max_new_tokens=15, **options, **ends)


@pytest.mark.catches(
    "beams_keep_their_past", "beams_take_the_source_of_others",
    "beam_scores_ignore_length", "graph_swaps_keys_and_values_of_the_source",
)  # fmt: skip
@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 5, "num_return_sequences": 5},
        {"num_beams": 3, "length_penalty": 0.3, "length_normalization": "gnmt"},
        {"num_beams": 2, "length_penalty": -1.0, "stop_strings": ["t"]},
        {"num_beams": 3, "length_penalty": 2.5},
        {"num_beams": 1, "max_new_tokens": 30},
    ],
)
def test_texts_of_an_encoder_decoder_model(tmp_path, monkeypatch, options):
    tokenizer = make_tokenizer()
    pipeline = make_pipeline(Seq2Seq(), tokenizer, Seq2SeqTransformer, n_layers=1)
    runner = runner_model(pipeline, tmp_path / "out", monkeypatch)
    ends = [tokenizer.eos_id, *range(3, 300, 10)]
    options = {"max_new_tokens": 12, "stop_token_ids": ends, **options}
    sources = [VERSE[start : start + 3 + start % 17] for start in range(40)]
    compare_texts(pipeline, runner, [*sources, ""], **options)


def test_sources_with_their_own_tokenizer_and_prefixes(tmp_path, monkeypatch):
    tokenizer = make_tokenizer()
    tokenizer.separate_source_tokenizer = make_tokenizer("byte")
    sizes = {"source_vocab_size": tokenizer.separate_source_tokenizer.vocab_size}
    pipeline = make_pipeline(
        Seq2Seq(start_id=7, max_source_len=9), tokenizer, Seq2SeqTransformer, **sizes
    )
    runner = runner_model(pipeline, tmp_path / "out", monkeypatch)
    compare_texts(pipeline, runner, ["The cat", "The cat sat on"], truncate=True, max_new_tokens=8)
    prefix = make_pipeline(PrefixLanguageModeling(), None, Seq2SeqTransformer)
    runner = runner_model(prefix, tmp_path / "prefix", monkeypatch)
    compare_texts(prefix, runner, ["The cat", "", VERSE * 3], truncate=True, temperature=0.0)


def test_texts_of_vectors(tmp_path, monkeypatch):
    task = FeatureSeq2Seq(input_dim=2, feature_means=[1.0, 50.0], feature_stds=[2.0, 5.0])
    pipeline = make_pipeline(task, None, Seq2SeqTransformer, input_dim=2)
    runner = runner_model(pipeline, tmp_path / "out", monkeypatch)
    random = np.random.default_rng(0)
    sources = [random.normal((1, 50), 3, (n, 2)).tolist() for n in (1, 4, 9)]
    expected = pipeline.predict(sources, max_new_tokens=9)
    assert runner.translate(sources, max_new_tokens=9) == expected


@pytest.mark.catches("stop_strings_are_of_one_token")
def test_stop_strings_of_several_tokens(tmp_path, monkeypatch):
    pipeline = make_pipeline(LanguageModeling(), make_tokenizer("char"), n_layers=1)
    runner = runner_model(pipeline, tmp_path / "out", monkeypatch)
    options = {"max_new_tokens": 30, "min_new_tokens": 30, "temperature": 1.5, "seed": 1}
    stop = pipeline.generate("The cat", **options)[10:13]
    assert len(stop) == 3
    compare_texts(pipeline, runner, ["The cat"], stop_strings=[stop, "xyz"], **options)


@pytest.mark.catches("stream_cuts_characters")
@pytest.mark.parametrize("kind", ["bpe", "byte", "unigram", "word"])
@pytest.mark.parametrize("options", [{}, {"stop_strings": ["at", "e d"]}])
def test_streams_join_to_the_text(tmp_path, monkeypatch, kind, options):
    tokenizer = make_tokenizer(kind)
    pipeline = make_pipeline(LanguageModeling(), tokenizer, n_layers=1)
    runner = runner_model(pipeline, tmp_path / "out", monkeypatch)
    for seed in range(3):
        settings = {"max_new_tokens": 40, "min_new_tokens": 20, "temperature": 2.0, "seed": seed}
        settings |= options
        parts = [*runner.stream("The cat", **settings)]
        assert "".join(parts) == pipeline.generate("The cat", **settings)
        assert len(parts) >= 3 or options


@pytest.mark.catches("classes_are_sorted_again", "shared_tokens_have_plain_types")
@pytest.mark.parametrize(
    ("task", "changes"),
    [
        (Classification(classes=["b", "a", "c"], input_kind="text"), {"output_dim": 3}),
        (
            Classification(classes=[3, 1], input_kind="pair", shared_token_types=True),
            {"output_dim": 2, "token_types": 4},
        ),
        (Classification(classes=[3, 1], input_kind="pair"), {"output_dim": 2, "token_types": 2}),
        (
            OrdinalRegression(classes=[1, 2, 3, 4], input_kind="text"),
            {"output_dim": 3, "ordered_outputs": True},
        ),
        (
            MultiLabelClassification(
                classes=["x", "y", "z"], input_kind="text", thresholds=[0.2, 0.5, 0.9]
            ),
            {"output_dim": 3},
        ),
        (
            Regression(input_kind="text", target_mean=5.0, target_std=2.0),
            {"output_dim": 1, "pooling": "first+max"},
        ),
        (
            Regression(
                input_kind="pair", num_values=2, value_names=["k", "a"],
                target_mean=[5.0, 1.0], target_std=[2.0, 3.0],
            ),
            {"output_dim": 2, "token_types": 2},
        ),
        (EmbeddingTask(input_kind="text"), {"pooling": "mean"}),
        (MaskedLM(input_kind="text"), {}),
    ],
)  # fmt: skip
def test_answers_of_texts(tmp_path, monkeypatch, task, changes):
    pipeline = make_pipeline(task, causal=False, max_seq_len=12, **changes)
    runner = runner_model(pipeline, tmp_path / "out", monkeypatch)
    inputs = PAIRS if task.input_kind == "pair" else [*PROMPTS, VERSE]
    if task.name == "masked_lm":
        inputs = ["The [MASK] sat", "[MASK] [MASK]", f"on the [MASK] {VERSE}"]
    answers = runner.predict(inputs, truncate=True)
    expected = (
        pipeline.embed(inputs, truncate=True).tolist()
        if task.name == "embedding"
        else pipeline.predict(inputs, truncate=True)
    )
    compare(answers, expected)


@pytest.mark.catches("series_has_plain_values")
@pytest.mark.parametrize("options", [{}, {"target_delta_of": 1, "scale_epsilon": 0.3}])
def test_answers_of_vectors(tmp_path, monkeypatch, options):
    task = Regression(
        input_kind="features", input_dim=2, target_mean=5.0, target_std=2.0,
        feature_means=[1.0, 50.0], feature_stds=[2.0, 5.0], **options,
    )  # fmt: skip
    model = tiny_model(causal=False, input_dim=2, output_dim=1, pooling="last")
    pipeline = Pipeline(model, None, task=task)
    runner = runner_model(pipeline, tmp_path / "out", monkeypatch)
    random = np.random.default_rng(0)
    inputs = [random.normal((1, 50), 3, (n, 2)).tolist() for n in (1, 4, 9)]
    inputs.append([{"b": 50.0, "a": 1.0}, {"a": 2.0, "b": 52.0}])
    compare(runner.regress(inputs), pipeline.predict(inputs))


def compare(answers, expected):
    """Equal structures, and numbers up to rounding."""
    if isinstance(expected, dict):
        assert answers.keys() == expected.keys()
        answers, expected = answers.values(), expected.values()
    if isinstance(expected, int | float):
        assert answers == pytest.approx(expected, abs=1e-5)
    elif isinstance(expected, str):
        assert answers == expected
    else:
        for answer, truth in zip(answers, expected, strict=True):
            compare(answer, truth)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An exported classifier."""
    task = Classification(classes=["b", "a"], input_kind="text")
    path = tmp_path_factory.mktemp("export") / "out"
    write_folder(make_pipeline(task, causal=False, output_dim=2, max_seq_len=12), path)
    return path


@pytest.fixture
def command(monkeypatch, capsys):
    """Calls run.py; returns the exit code and the message."""

    class NoGraph:
        def __init__(self, path, threads):
            self.inputs = {"input_ids": None}

    monkeypatch.setattr(run, "Graph", NoGraph)

    def call(*arguments):
        code = run.main([*map(str, arguments)])
        return code, capsys.readouterr().err

    return call


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["translate", "a"], "the model cannot translate; its command is classify"),
        (["sing", "a"], "invalid choice: 'sing'"),
        (["classify", VERSE], "input 1 is "),
        (["classify", "a", "--num_beams", "2"], "num_beams is for commands that generate text"),
        (["classify", "a", "--beams", "2"], "unrecognized arguments: --beams"),
        (["classify", "a", "--threads", "two"], "invalid int value: 'two'"),
    ],
)
def test_wrong_arguments_have_one_line(folder, command, arguments, message):
    code, text = command(*arguments, "--folder", folder)
    assert code == 2
    assert text.startswith("run.py: error: ")
    assert message in text
    assert text.count("\n") == 1


def test_no_input_is_an_error(folder, command, monkeypatch):
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    code, text = command("classify", "--folder", folder)
    assert (code, text) == (2, "run.py: error: there is no input\n")


@pytest.mark.catches("any_format_is_read")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "missing or damaged (FileNotFoundError"),
        ("{", "missing or damaged (JSONDecodeError"),
        ("[]", "missing or damaged (TypeError"),
        ('{"format": 1}', "missing or damaged (KeyError('files'))"),
        (9, "format 9 is unknown; this run.py reads 1"),
    ],
)
def test_damaged_descriptions(folder, tmp_path, command, content, message):
    if isinstance(content, int):
        about = json.loads((folder / "export.json").read_text())
        content = json.dumps({**about, "format": content})
    if content is not None:
        (tmp_path / "export.json").write_text(content)
    code, text = command("classify", "a", "--folder", tmp_path)
    assert code == 2
    assert message in text
    assert text.count("\n") == 1


def test_a_graph_that_onnxruntime_cannot_read(folder, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    for name in ("export.json", "tokenizer.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    (tmp_path / "model.onnx").write_text("damaged")
    assert run.main(["classify", "a", "--folder", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "model.onnx: " in error
    assert error.count("\n") == 1


def test_commands_print_answers(tmp_path, monkeypatch, capsys):
    pipeline = make_pipeline(LanguageModeling())
    folder = tmp_path / "out"
    runner_model(pipeline, folder, monkeypatch)
    flags = ["--folder", str(folder), "--max_new_tokens", "6", "--temperature", "0"]
    assert run.main(["generate", "The cat", *flags]) == 0
    text = pipeline.generate("The cat", max_new_tokens=6, temperature=0.0)
    assert capsys.readouterr().out == f"The cat{text}\n"
    assert run.main(["generate", "The", "a", *flags, "--stop_strings", "e"]) == 0
    texts = pipeline.generate(["The", "a"], max_new_tokens=6, temperature=0.0, stop_strings=["e"])
    assert capsys.readouterr().out == f"The{texts[0]}\na{texts[1]}\n"
    assert run.main(["generate", VERSE * 2, *flags]) == 2
    assert "the model reads at most 58 with max_new_tokens=6" in capsys.readouterr().err
    assert run.main(["generate", "a", *flags, "--top_p", "2"]) == 2
    assert "top_p must be from 1e-09 to 1, not 2.0" in capsys.readouterr().err


def test_options_that_the_runner_lacks_are_refused(tmp_path, monkeypatch):
    pipeline = make_pipeline(LanguageModeling())
    pipeline.generation = pipeline.generation.override({"context_shift": True})
    runner = runner_model(pipeline, tmp_path / "out", monkeypatch)
    with pytest.raises(run.RunError, match="context_shift is no option"):
        runner.generate(["a"])
