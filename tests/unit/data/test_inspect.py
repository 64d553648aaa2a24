"""`miniformer data check` on files with known content."""

import json
import re
import shlex

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from miniformer import cli
from miniformer.config.command_line import miniformer_command
from miniformer.data.inspect import (
    conflicting_labels_warning,
    find_duplicates,
    inspect_dataset,
)
from miniformer.data.reading import schema
from miniformer.data.reading.records import as_records
from miniformer.tasks.classification import Classification
from tests.kit import VERSE


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def check(*arguments):
    return cli.main(["data", "check", *map(str, arguments)])


SCHEMA = {"text": schema.check_text}


def looked(tmp, name, texts):
    path = write(tmp / f"{name}.jsonl", [{"text": text} for text in texts])
    return inspect_dataset(
        name,
        str(path),
        SCHEMA,
        length_fn=lambda records: {"text": [len(r["text"]) for r in records]},
    )


@pytest.mark.catches("duplicates_within_a_split_are_missed")
@given(
    st.lists(st.sampled_from("abcdefgh"), min_size=1),
    st.lists(st.sampled_from("efghij"), min_size=1),
)
def test_find_duplicates_matches_a_plain_count(tmp_path_factory, train, val):
    tmp = tmp_path_factory.mktemp("data")
    train_split, val_split = looked(tmp, "train", train), looked(tmp, "val", val)
    assert find_duplicates(train_split, train_split)[0] == len(train) - len(set(train))
    number, shown = find_duplicates(train_split, val_split)
    assert number == sum(text in train for text in val)
    assert len(shown) == min(3, number)
    for line in shown:
        match = re.fullmatch(r".*val.jsonl:(\d+) repeats .*train.jsonl:(\d+)", line)
        second, first = match.groups()
        assert val[int(second) - 1] == train[int(first) - 1]
        assert train.index(val[int(second) - 1]) == int(first) - 1
    assert train_split.lengths["text"].tolist() == [1] * len(train)


def test_find_duplicates_ignores_spaces_and_case(tmp_path):
    train_split = looked(tmp_path, "train", ["caf\u00e9  au lait", "x"])
    val_split = looked(tmp_path, "val", ["cafe\u0301 au lait\n", "y"])
    assert find_duplicates(train_split, val_split)[0] == 1


@pytest.mark.catches("check_ends_at_the_first_fault")
def test_inspect_counts_all_errors_and_shows_the_first(tmp_path, capsys):
    path = tmp_path / "bad.jsonl"
    good = json.dumps({"input": "a b c", "label": 0}).encode()
    lines = [
        good, b'{"input": "a\xff", "label": 0}', b'{"input": "b"}', good,
        b'{"input": 3, "label": 1}',
        b'{"input": "c", "label": 1, "label": 1}', b'{"input": "d", "label": null}', good,
        b'{"input": "cut',
    ]  # fmt: skip
    path.write_bytes(b"\n".join(lines))
    assert check(path, "--task", "classification", "--faults", "4") == 1
    out = capsys.readouterr().out
    assert "train: 3 valid records" in out
    assert "invalid records of train: 6" in out
    named = re.findall(r"^  \S*bad.jsonl:(\d+): ", out, re.MULTILINE)
    assert named == ["2", "3", "5", "6"]
    assert "6 invalid records; fix them before training" in out


def test_inspect_of_a_valid_classification_file(tmp_path, capsys):
    random = np.random.default_rng(0)
    texts = [" ".join(["w"] * int(n)) for n in random.integers(3, 40, 200)]
    records = [
        {"input": f"{text} {n}", "label": "rare" if n % 10 == 0 else "often"}
        for n, text in enumerate(texts)
    ]
    train, val = (
        write(tmp_path / "train.jsonl", records),
        write(tmp_path / "val.jsonl", records[:5]),
    )
    assert check(train, "--task", "classification", "--val_path", val) == 0
    out = capsys.readouterr().out
    lengths = [len(record["input"].split()) for record in records]
    assert f"median {int(np.median(lengths))}, 90 % up to {int(np.percentile(lengths, 90))}" in out
    assert f"maximum {max(lengths)}" in out
    counted = re.findall(r"█* +([\d,]+) \(", out.split("labels:")[0].split("maximum")[1])
    assert sum(map(int, counted)) == 200, "every record is in one bar"
    assert re.search(r"often █{40} 180 \(90.0%\)", out)
    assert re.search(r"rare █{4} +20 \(10.0%\)", out)
    assert 'unbalanced: consider --task_config \'{"class_weights": "balanced"}\'' in out
    assert "duplicates of val in train: 5" in out
    assert "warning: 5 of 5 inputs of val are also in train" in out
    assert "no invalid records; see the warnings above" in out
    assert "max_seq_len" not in out  # the default is enough
    command = re.findall(r"^train with: (.*)$", out, re.MULTILINE)[0]
    assert "--task classification" in command
    assert f"--val_path {val}" in command
    assert "labels that occur once" not in out


@pytest.mark.catches("data_check_omits_rare_labels")
def test_data_check_prints_the_warnings_of_training_about_records(tmp_path, capsys):
    labels = ["spam", "ham", "spam", "ham", "smap"]
    records = [{"input": f"text {n}", "label": label} for n, label in enumerate(labels)]
    train = write(tmp_path / "train.jsonl", [records[0], {"input": ""}, *records[1:]])
    assert check(train, "--task", "classification") == 1
    out = capsys.readouterr().out
    assert f"labels that occur once: 'smap' ({train}:6); one record teaches little" in out


@pytest.mark.catches("data_check_suggests_one_of_the_files")
def test_data_check_suggests_a_command_that_trains_with_all_that_is_given(tmp_path, capsys):
    rows = [{"text": f"a {n} b", "kind": "ab"[n % 2]} for n in range(30)]
    files = [write(tmp_path / f"{name} .jsonl", rows) for name in ("first", "second")]
    options = ["--task", "classification", "--input_field", "text", "--label_field", "kind"]
    options += ["--task_config", '{"label_smoothing": 0.1}', "--val_path", str(files[0])]
    assert check(files[0], str(files[1]), *options) == 0
    command = capsys.readouterr().out.split("train with: ")[1].splitlines()[0]
    arguments = shlex.split(command)
    start = arguments.index("train")
    assert " ".join(arguments[:start]) == miniformer_command()
    assert cli.main([*arguments[start:], "--print_config"]) == 0
    settings = yaml.safe_load(capsys.readouterr().out)
    assert settings["train_path"] == [str(file) for file in files]
    expected = {"task": "classification", "input_field": "text", "label_field": "kind"}
    expected |= {"task_config": {"label_smoothing": 0.1}, "val_path": str(files[0])}
    assert {name: settings[name] for name in expected} == expected
    assert settings["model_config"] == {}


def test_data_check_suggests_the_length_of_long_texts(tmp_path, capsys):
    lengths = [800 + 2 * n for n in range(100)]
    records = [{"input": "word " * length, "label": n % 2} for n, length in enumerate(lengths)]
    assert check(write(tmp_path / "a.jsonl", records), "--task", "classification") == 0
    out = capsys.readouterr().out
    (length,) = re.findall(r"^suggestion: max_seq_len (\d+)", out, re.MULTILINE)
    assert 0 <= int(length) - 1.5 * np.percentile(lengths, 99) < 20
    assert f"--model_config '{{\"max_seq_len\": {length}}}'" in out.split("train with: ")[1]


@pytest.mark.catches("data_check_counts_no_warnings")
def test_data_check_ends_with_the_number_of_problems(tmp_path, capsys):
    good = [{"input": f"a {n}", "label": "xy"[n % 2]} for n in range(4)]
    for records, end in [
        (good, "no problems found"),
        ([*good, {"input": "a", "label": "z"}], "no invalid records; see the warnings above"),
        ([*good, {"input": "a"}], "1 invalid record; fix it before training"),
        ([*good, {"input": "a"}, {"input": 3}], "2 invalid records; fix them before training"),
    ]:
        check(write(tmp_path / "a.jsonl", records), "--task", "classification")
        assert capsys.readouterr().out.splitlines()[-1] == end


def test_inspect_suggests_no_batch_size_for_text_generation(tmp_path, capsys):
    train = write(tmp_path / "train.jsonl", [{"text": VERSE}] * 40)
    assert check(train) == 0
    out = capsys.readouterr().out
    assert re.search(r"^suggestion: max_seq_len \d+ \(a word", out, re.MULTILINE)
    assert "batch_size" not in out
    train = write(tmp_path / "pairs.jsonl", [{"source": VERSE, "target": VERSE}] * 40)
    assert check(train, "--task", "seq2seq") == 0
    assert "batch_size" not in capsys.readouterr().out


@pytest.mark.catches("labels_that_training_lacks_are_not_reported")
def test_inspect_rejects_a_label_that_train_lacks(tmp_path, capsys):
    train = write(tmp_path / "train.jsonl", [{"input": "a", "label": n} for n in range(2)])
    val = write(tmp_path / "val.jsonl", [{"input": "b", "label": 7}] * 2)
    assert check(train, "--task", "classification", "--val_path", val) == 1
    out = capsys.readouterr().out
    assert "invalid records of val: 2" in out
    assert f"{val}:2: 'label' is 7, which is none of the classes trained on: 0, 1" in out


def test_inspect_of_values_pairs_vectors_and_targets(tmp_path, capsys):
    pairs = [{"input": ["a b", "c"], "value": float(n)} for n in range(11)]
    assert check(write(tmp_path / "a.jsonl", pairs), "--task", "regression") == 0
    out = capsys.readouterr().out
    assert "values: 0 to 10, mean 5, standard deviation 3.16228" in out
    assert "maximum 3" in out
    vectors = [{"input": [[0.5, 1.0]] * n, "value": float(n)} for n in (1, 4)]
    assert check(write(tmp_path / "b.jsonl", vectors), "--task", "regression") == 0
    assert "maximum 4" in capsys.readouterr().out
    targets = [{"source": "ab", "target": "abc"}] * 3
    arguments = [write(tmp_path / "c.jsonl", targets), "--task", "seq2seq", "--tokenizer", "byte"]
    assert check(*arguments) == 0
    out = capsys.readouterr().out
    assert "length of source in tokens" in out
    assert "length of target in tokens" in out
    assert "duplicates within train: 2" in out


@pytest.mark.parametrize("form", ["objects", "columns"])
@pytest.mark.catches("data_check_mixes_the_outputs_of_a_regression")
def test_data_check_has_statistics_of_each_output(tmp_path, capsys, form):
    outputs = {"price": np.arange(11.0) * 100, "area": np.arange(11.0)}
    rows = [{name: float(values[n]) for name, values in outputs.items()} for n in range(11)]
    options = ["--label_field", "price,area"] if form == "columns" else []
    rows = rows if options else [{"value": row} for row in rows]
    path = write(tmp_path / "a.jsonl", [{"input": f"t {n}", **row} for n, row in enumerate(rows)])
    assert check(path, "--task", "regression", *options) == 0
    out = capsys.readouterr().out
    for name, values in outputs.items():
        spread = f"mean {values.mean():g}, standard deviation {values.std():g}"
        assert f"values of {name}: 0 to {values.max():g}, {spread}" in out
    lists = [{"input": f"t {n}", "value": [n, 2 * n]} for n in range(11)]
    assert check(write(tmp_path / "b.jsonl", lists), "--task", "regression") == 0
    assert "values of 2: 0 to 20, mean 10" in capsys.readouterr().out


@pytest.mark.catches("conflicting_labels_are_not_found")
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz")), min_size=1))
def test_conflicting_labels_match_a_plain_search(tmp_path_factory, pairs):
    tmp = tmp_path_factory.mktemp("data")
    path = write(tmp / "a.jsonl", [{"input": x, "label": y} for x, y in pairs])
    fields = Classification().schema
    split = inspect_dataset("train", str(path), fields, length_fn=lambda records: {})
    labels = {text: {y for x, y in pairs if x == text} for text, _ in pairs}
    number = sum(len(of_input) > 1 for of_input in labels.values())
    warning = conflicting_labels_warning(split)
    if not number:
        assert warning is None
        return
    firsts = [pairs.index(next(p for p in pairs if p[0] == x)) for x, _ in pairs]
    second = next(n for n, (_, y) in enumerate(pairs) if y != pairs[firsts[n]][1])
    match = re.search(r"^([\d,]+) inputs? of train .*:(\d+) and \S*:(\d+);", warning)
    assert [int(x) for x in match.groups()] == [number, firsts[second] + 1, second + 1]


@pytest.mark.parametrize(
    ("task", "field", "values", "is_found"),
    [
        ("multilabel_classification", "labels", [["a", "b"], ["b", "a"]], False),
        ("multilabel_classification", "labels", [["a", "b"], ["b"]], True),
        ("token_classification", "tags", [["A", "B"], ["A", "B"]], False),
        ("token_classification", "tags", [["A", "B"], ["B", "A"]], True),
    ],
)
def test_conflicts_are_those_of_sets_of_labels_and_of_tags(
    tmp_path, capsys, task, field, values, is_found
):
    text = {"tokens": ["x", "y"]} if field == "tags" else {"input": "x y"}
    path = write(tmp_path / "a.jsonl", [{**text, field: value} for value in values])
    check(path, "--task", task)
    out = capsys.readouterr().out
    assert ("1 input of train occurs with different labels, such as in" in out) is is_found


def test_inspect_of_plain_text(tmp_path, capsys):
    path = tmp_path / "a.txt"
    path.write_text(VERSE)
    assert check(path) == 0
    assert "train: 1 valid records" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--task", "clasification"],
            "unknown task 'clasification' (did you mean 'classification'",
        ),
        (["--tokenizer", "bpe"], "tokenizer: bpe must be trained first"),
        (["--tokenizer", "nowhere"], "nowhere: no such tokenizer file"),
        (["--faults", "-1"], "faults must be at least 0, not -1"),
        (["--fault", "1"], "unknown flag --fault; did you mean --faults?"),
        (["--val_path", "nowhere.jsonl"], "nowhere.jsonl: No such file"),
    ],
)
def test_inspect_command_user_errors(tmp_path, capsys, more, message):
    path = write(tmp_path / "a.jsonl", [{"text": "a"}])
    assert check(path, *more) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("length", "size"), [(3, None), (150, None), (400, 4), (5000, 1)])
@pytest.mark.catches("data_check_suggests_large_batches")
def test_inspect_suggests_batch_size_for_long_inputs_only(tmp_path, capsys, length, size):
    """At most 4,096 tokens per batch, 1.5 per word, a power of two; the default is 16."""
    records = [{"input": "w " * length, "label": n % 2} for n in range(30)]
    assert check(write(tmp_path / "a.jsonl", records), "--task", "classification") == 0
    suggestions = re.findall(r"--batch_size (\d+)", capsys.readouterr().out)
    assert suggestions == ([] if size is None else [str(size)])


LABELS = ["good", "bad", "good ", "caf\u00e9", " cafe\u0301", "ok", "o k"]


@pytest.mark.catches("labels_alike_are_not_found")
def test_inspect_reports_labels_that_differ_by_spaces_or_case(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", [{"input": "x", "label": label} for label in LABELS])
    assert check(path, "--task", "classification") == 0
    out = capsys.readouterr().out
    prefix = "warning: labels that differ only by spaces or Unicode normalization: "
    assert f"{prefix}'good' ({path}:1), 'good ' ({path}:3); use one spelling" in out
    assert f"{prefix}'caf\\xe9' ({path}:4), ' cafe\\u0301' ({path}:5); use one spelling" in out
    assert out.count("warning: labels that differ") == 2
    task = Classification().fit(as_records(str(path), Classification().schema))
    warnings = [line for line in task.data_warnings() if "differ only by spaces" in line]
    assert len(warnings) == 2


def test_inspect_uses_the_task_config_of_training(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", [{"input": "x", "label": "a"}])
    config = ["--task_config", '{"classes": ["a", "b"]}']
    assert check(path, "--task", "classification") == 1
    assert check(path, "--task", "classification", *config) == 0
    assert check(path, "--task", "classification", "--task_config", '{"clases": 3}') == 2
    assert "task_config: Classification: unknown field 'clases'" in capsys.readouterr().err


@pytest.mark.catches("names_among_integer_labels_are_not_named")
def test_check_warns_about_names_among_integer_labels(tmp_path, capsys):
    path = tmp_path / "a.csv"
    path.write_text("input,label\na,1\nb,2\nc,n/a\nd,3\ne,1\n")
    assert check(path, "--task", "classification") == 0
    output = capsys.readouterr().out.replace("\n", "")
    assert f"warning: 3 of 4 labels are integers, and 'n/a' ({path}:4) is not" in output
    path.write_text("input,label\na,one\nb,2\nc,two\n")
    assert check(path, "--task", "classification") == 0
    assert "labels are integers" not in capsys.readouterr().out
