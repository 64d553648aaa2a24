"""Inputs with an adapter each, in Python and of `miniformer predict`."""

import json

import pytest

import miniformer
from miniformer import Pipeline, TransformerConfig, UserError, adapters, cli
from miniformer.config import InputError
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.registry import get
from tests.kit import tiny_model
from tests.unit.adapters.test_modules import randomize

CLASSES = {"topic": ["art", "law", "war"], "mood": ["bad", "good"]}
TEXTS = ["one", "three words long", "", "two", "a b"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A language model; two adapters of it, and two classifiers that are adapters."""
    path = tmp_path_factory.mktemp("by_input")
    tokenizer = Tokenizer.train("byte", [])
    base = tiny_model(vocab_size=tokenizer.vocab_size, max_seq_len=48)
    task = get("task", "language_modeling")()
    Pipeline(base, tokenizer, task).save(path / "base")
    for seed, name in enumerate(("terse", "wordy")):
        pipeline = miniformer.load(path / "base")
        adapters.add(pipeline.model, alpha=20.0 * (1 + seed))
        randomize(pipeline.model)
        adapters.save(pipeline, path / name, base=path / "base")
    for seed, (name, classes) in enumerate(CLASSES.items()):
        model = miniformer.load(path / "base").model
        fields = {"output_dim": len(classes), "pooling": "mean"}
        model.head = tiny_model(seed, **fields).head
        model.config = TransformerConfig.from_dict({**model.config.to_dict(), **fields})
        adapters.add(model, targets=["q_proj", "v_proj"])
        randomize(model)
        task = get("task", "classification")(classes=classes, input_kind="text")
        adapters.save(Pipeline(model.eval(), tokenizer, task), path / name, base=path / "base")
    return path


def base_with(folder, *names):
    pipeline = miniformer.load(folder / "base")
    for name in names:
        adapters.load(pipeline, folder / name, name=name)
    adapters.use(pipeline, None)
    return pipeline


@pytest.mark.catches("inputs_have_the_adapter_of_the_first")
def test_each_prompt_is_generated_with_its_adapter(folder):
    pipeline = base_with(folder, "terse", "wordy")
    names = ["wordy", None, "terse", "wordy", "terse"]
    options = {"max_new_tokens": 6, "temperature": 0}
    texts = adapters.generate(pipeline, TEXTS, names, **options)
    for text, prompt, name in zip(texts, TEXTS, names, strict=True):
        adapter = None if name is None else folder / name
        alone = miniformer.load(folder / "base", adapter=adapter)
        assert text == alone.generate(prompt, **options)
    assert len(set(texts)) > 3
    with pytest.raises(InputError, match=r"input 1 has the unknown adapter 'wordi'.*'wordy'"):
        adapters.generate(pipeline, TEXTS[:2], [None, "wordi"])
    with pytest.raises(UserError, match="2 inputs need a list of as many adapters, not 1"):
        adapters.generate(pipeline, TEXTS[:2], [None])


def test_predictions_have_the_head_and_the_task_of_their_adapter(folder):
    pipeline = base_with(folder, *CLASSES)
    names = ["mood", "topic", "topic", "mood", "topic"]
    predictions = adapters.predict(pipeline, TEXTS, names)
    for prediction, text, name in zip(predictions, TEXTS, names, strict=True):
        assert [*prediction["scores"]] == CLASSES[name]
        alone = miniformer.load(folder / "base", adapter=folder / name).predict(text)
        assert prediction["scores"] == pytest.approx(alone["scores"], abs=1e-5)
    assert pipeline.task.name == "language_modeling"
    texts = [*TEXTS[:2], "x" * 90, *TEXTS[3:]]
    with pytest.raises(InputError, match="input 2") as error:
        adapters.predict(pipeline, texts, names)
    assert [*error.value.problems] == [2]
    adapters.use(pipeline, "topic")
    assert [*pipeline.predict("a")["scores"]] == CLASSES["topic"]


def run(folder, tmp_path, rows, *options):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["predict", str(folder / "base"), "--input", str(source), "--output", str(target)]
    code = cli.main([*arguments, *options])
    if not target.exists():
        return code, None
    return code, [json.loads(line) for line in target.read_text().splitlines()]


@pytest.mark.catches("field_of_adapters_is_ignored")
def test_command_predicts_each_record_with_the_adapter_of_its_field(folder, tmp_path, capsys):
    paths = json.dumps({name: str(folder / name) for name in CLASSES})
    options = ["--adapters", paths, "--adapter_field", "kind", "--scores", "all"]
    names = ["mood", "topic", "topic", "mood", "topic"]
    rows = [{"input": text, "kind": name} for text, name in zip(TEXTS, names, strict=True)]
    code, lines = run(folder, tmp_path, rows, *options)
    assert code == 0
    for line, text, name in zip(lines, TEXTS, names, strict=True):
        alone = miniformer.load(folder / "base", adapter=folder / name).predict(text)
        assert line["label"] == alone["label"]
        assert line["scores"] == pytest.approx(alone["scores"], rel=1e-4)
    rows[1]["kind"], rows[3] = "moot", {"input": "two"}
    code, lines = run(folder, tmp_path, rows, *options)
    assert code == 2
    assert [line is not None for line in lines] == [True, False, True, False, True]
    err = capsys.readouterr().err
    assert "in.jsonl:2: has the unknown adapter 'moot' (did you mean 'mood'?)" in err
    assert "in.jsonl:4: has no field 'kind' with its adapter" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--adapter_field", "kind"], "adapters and adapter_field go together"),
        (["--adapters", '{"a": "b"}'], "adapters and adapter_field go together"),
        (["--adapters", '{"a": "b"}', "--adapter_field", "k", "--adapter", "c"], "adapter is one"),
        (["--adapters", '{"a": "no"}', "--adapter_field", "k"], "no such file"),
    ],
)
def test_flags_that_do_not_fit_are_one_line(folder, tmp_path, capsys, options, message):
    assert run(folder, tmp_path, [{"input": "a", "k": "a"}], *options)[0] == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.splitlines()) == 1


def test_adapters_of_other_fields_are_refused(folder, tmp_path, capsys):
    paths = json.dumps({name: str(folder / name) for name in ("topic", "terse")})
    options = ["--adapters", paths, "--adapter_field", "kind"]
    assert run(folder, tmp_path, [{"input": "a", "kind": "topic"}], *options)[0] == 2
    assert "different fields (topic: input, terse: text)" in capsys.readouterr().err


def test_selection_of_before_is_in_use_after_an_error(folder):
    pipeline = base_with(folder, *CLASSES)
    adapters.use(pipeline, "mood")
    before = pipeline.predict("a")
    with pytest.raises(InputError):
        adapters.predict(pipeline, ["x" * 90], ["topic"])
    assert pipeline.predict("a") == before
