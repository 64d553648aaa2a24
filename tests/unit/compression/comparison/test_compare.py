"""Comparison of models: the same metric as `evaluate`, the same work in turns."""

import json

import pytest

import miniformer
from miniformer import Pipeline, Tokenizer, UserError, cli
from miniformer.compression.comparison import measured_process, speeds
from miniformer.compression.comparison.compare import ComparedModel, ModelComparison
from miniformer.compression.comparison.speeds import Speed, measure_speeds
from miniformer.compression.comparison.workload import Workload, make_workload
from miniformer.data.reading.records import as_records
from miniformer.evaluation.comparison import Difference
from miniformer.registry import get
from miniformer.tasks.classification import Classification
from miniformer.tasks.language_modeling import LanguageModeling
from tests.kit import tiny_model

CLASSES = [{"input": f"{letter} text {n}", "label": letter} for n in range(20) for letter in "ab"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classifiers, a language model, and data."""
    path = tmp_path_factory.mktemp("compare")
    tokenizer = Tokenizer.train("byte", [])
    sizes = {"vocab_size": tokenizer.vocab_size, "d_model": 32, "n_layers": 1}
    for name, seed in (("first", 1), ("second", 2)):
        model = tiny_model(causal=False, output_dim=2, seed=seed, **sizes)
        task = Classification(classes=["a", "b"], input_kind="text")
        Pipeline(model, tokenizer, task).save(path / name)
    Pipeline(tiny_model(**sizes), tokenizer, LanguageModeling()).save(path / "lm")
    (path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in CLASSES))
    return path


@pytest.mark.catches("compare_swaps_the_models", "compare_command_ignores_rounds")
def test_compare_has_the_numbers_of_evaluate(folder, monkeypatch, capsys):
    seen = []

    def speeds_of(paths, workload, *, rounds, threads):
        seen.append((workload.unit, rounds, threads))
        return [Speed(0.25, {1: 4.0, 16: 40.0}, {1: ratio, 16: 1.01}, 10**8) for ratio in (1, 0.5)]

    monkeypatch.setattr("miniformer.compression.comparison.compare.measure_speeds", speeds_of)
    names = [str(folder / name) for name in ("first", "second")]
    flags = ["--data", str(folder / "data.jsonl"), "--rounds", "2", "--threads", "1"]
    assert cli.main(["compare", *names, *flags, "--json"]) == 0
    compared = json.loads(capsys.readouterr().out)
    assert seen == [("records", 2, 1)]
    expected = miniformer.load(names[1]).evaluate(CLASSES, against=names[0])
    assert compared["metric"] == next(iter(expected.comparison.differences))
    difference = expected.comparison.differences[compared["metric"]]
    second = compared["models"][1]
    assert second["difference"] == vars(difference)
    assert second["metrics"]["loss"] == expected.metrics["loss"]
    assert second["num_bytes"] == (folder / "second" / "model.safetensors").stat().st_size
    assert compared["models"][0]["difference"] is None
    assert cli.main(["compare", *names, *flags]) == 0
    text = capsys.readouterr().out
    assert "second: 1.00 of the bytes, slower (0.50x) at batch 1, as fast at batch 16" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.catches("slower_models_are_as_fast", "the_first_model_is_the_fastest")
def test_verdicts(tmp_path):
    def model(name, difference, ratio):
        speed = Speed(0.1, {1: 10.0}, {1: ratio}, 1)
        return ComparedModel(tmp_path / name, 100, {"f1": 0.5}, difference, speed, "int8")

    clear = Difference(0.4, 0.5, -0.1, -0.15, -0.05, 0.01)
    unclear = Difference(0.51, 0.5, 0.01, -0.02, 0.04, 0.6)
    models = (model("a", None, 1.0), model("b", clear, 1.5), model("c", unclear, 0.9))
    first, second, fastest = ModelComparison("data", 9, "f1", "records", models).verdicts()
    assert first == "b: 1.00 of the bytes, 1.50x as fast at batch 1, f1 -0.1"
    assert " ".join(second.split()) == (
        "c: 1.00 of the bytes, slower (0.90x) at batch 1, f1 +0.01 (within the interval of no "
        "difference)"
    )
    assert fastest == "fastest at batch 1: b (int8)"
    models = (*models, model("d", clear, 1.47))
    text = ModelComparison("data", 9, "f1", "records", models).verdicts()[-1]
    assert text == "fastest at batch 1: b (int8), d (int8)"


class Clock:
    """Processes that take a known time, and note who worked."""

    def __init__(self, seconds):
        self.seconds, self.order, self.memory = seconds, [], 7

    def of(self, path, threads):
        clock, number = self, int(path.name)

        class Process:
            memory = 7

            def __enter__(self):
                return self

            def __exit__(self, *error):
                pass

            def read(self):
                return {}

            def ask(self, work):
                clock.order.append((number, len(work["inputs"]), work["tokens"]))
                return clock.seconds[number] * max(1, work["tokens"]) * len(work["inputs"])

        return Process()


@pytest.mark.catches("ratios_of_speeds_are_turned", "the_first_round_is_counted")
def test_models_work_in_turns(tmp_path, monkeypatch):
    clock = Clock([0.5, 0.25])
    monkeypatch.setattr(speeds, "_Process", clock.of)
    paths = [tmp_path / "0", tmp_path / "1"]
    first, second = measure_speeds(paths, Workload(["x"], 8), rounds=2)
    assert [order[0] for order in clock.order[:6]] == [0, 1] * 3
    assert [order[0] for order in clock.order[6:12]] == [1, 0] * 3  # rotated
    assert [order[1:] for order in clock.order[:6:2]] == [(1, 1), (1, 8), (16, 8)]
    assert len(clock.order) == 3 * 6
    assert (first.first_seconds, second.first_seconds) == (0.5, 0.25)
    assert first.rates == {1: 2.0, 16: 2.0}
    assert second.ratios == {1: 2.0, 16: 2.0}
    slow_start = iter([100.0] * 6 + [1.0] * 12)
    monkeypatch.setattr(speeds, "_Process", lambda path, threads: _Timed(slow_start))
    assert measure_speeds(paths, Workload(["x"], 0), rounds=2)[0].rates == {1: 1.0, 16: 16.0}


class _Timed(Clock):
    def __init__(self, times):
        super().__init__([])
        self.times = times

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def read(self):
        return {}

    def ask(self, work):
        return next(self.times)


@pytest.mark.catches("generated_texts_end_early")
def test_each_model_generates_the_same_number_of_tokens(folder, monkeypatch):
    pipeline, counts = miniformer.load(folder / "lm"), []
    generate = type(pipeline).generate

    def counted(self, prompts, **options):
        outputs = self.generate_outputs(prompts, **options)
        counts.extend(len(output.tokens) for _, output in outputs)
        return generate(self, prompts, **options)

    monkeypatch.setattr(type(pipeline), "generate", counted)
    with_eos = pipeline.model.head
    if with_eos.bias is not None:  # EOS is the most likely token without a minimum
        with_eos.bias.data[pipeline.tokenizer.eos_id] = 100.0
    measured_process.run(pipeline, ["abc", "d"], 5)
    assert counts == [5, 5]
    measured_process.run(miniformer.load(folder / "first"), ["abc", "d"], 0)


@pytest.mark.catches("prompts_are_whole_texts")
def test_workloads_of_tasks(folder):
    texts = [{"text": "a" * 100}, {"text": "bc"}]
    task = LanguageModeling()
    workload = make_workload(task, as_records(texts, task.schema), 8)
    assert workload.batch(3) == ["a" * 64, "bc", "a" * 64]
    assert (workload.unit, workload.amount(16)) == ("tokens", 128)
    task = miniformer.load(folder / "first").task
    workload = make_workload(task, as_records(CLASSES, task.schema), 8)
    assert workload.inputs == [row["input"] for row in CLASSES[:16]]
    assert (workload.unit, workload.amount(16), workload.tokens) == ("records", 16, 0)
    task = get("task", "seq2seq")()
    pairs = as_records([{"source": "q", "target": "w"}], task.schema)
    assert make_workload(task, pairs, 4).batch(2) == ["q", "q"]


def test_the_prompt_of_a_conversation_is_its_first_text():
    """A message with calls of tools may have no content."""
    call = {"function": {"name": "f", "arguments": "{}"}}
    rows = [
        {"messages": [{"role": "assistant", "content": content, "tool_calls": [call]}, *rest]}
        for content in (None, "")
        for rest in ([{"role": "user", "content": "b" * 100}], [])
    ]

    class Rows(list):
        name = "chats"

        def read(self, indices):
            return [self[index] for index in indices]

    assert make_workload(LanguageModeling(), Rows(rows), 4).inputs == ["b" * 64] * 2
    with pytest.raises(UserError, match="chats: no record has an input to measure with"):
        make_workload(LanguageModeling(), Rows(rows[1:2]), 4)


@pytest.mark.catches("children_hide_their_errors")
def test_processes(folder):
    """Real processes of one model, and of a directory that is none."""
    workload = Workload(["abc"], 2)
    (speed,) = measure_speeds([folder / "lm"], workload, rounds=1, threads=1)
    assert speed.memory > 10**7
    assert speed.rates[16] > speed.rates[1] > 0
    assert speed.ratios == {1: 1.0, 16: 1.0}
    with pytest.raises(
        UserError, match=r"data.jsonl: cannot be measured: (?!.*UserError).*(not|no) "
    ):
        measure_speeds([folder / "data.jsonl"], workload, rounds=1)


def test_wrong_arguments(folder, capsys):
    names = [str(folder / name) for name in ("first", "lm")]
    data = ["--data", str(folder / "data.jsonl")]
    for arguments, message in (
        ([names[0], *data], "compare needs two models or more"),
        ([*names, *data, "--rounds", "0"], "rounds must be at least 1, not 0"),
        ([*names, *data, "--threads", "-1"], "threads must be at least 0, not -1"),
        ([*names, *data], "lm: a model for language_modeling cannot be compared with one for"),
    ):
        assert cli.main(["compare", *arguments]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert "Traceback" not in err
