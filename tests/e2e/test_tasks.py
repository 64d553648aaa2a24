"""Each task from data files to predictions through the command line."""

import io
import json
import os
import re
import subprocess
import sys
import threading

import numpy as np
import pytest

import miniformer
from miniformer import cli, trainer
from miniformer.config import UserError
from miniformer.data.tokenizers.tokenizer import Tokenizer
from tests.kit import VERSE, environment, run_python, write_jsonl

SMALL = {"d_model": 32, "n_heads": 2, "n_layers": 1, "max_seq_len": 64, "dropout": 0.0}


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def train(tmp_path, capsys):
    """Trains on records; returns the model directory and the output."""

    def run(records, *more, val=None, model=None, path=None, steps=150):
        file = path or write(tmp_path / "train.jsonl", records)
        held_out = write(tmp_path / "val.jsonl", val or records[:20])
        vectors = not isinstance(records[0].get("input", "-")[0], str)
        tokenizer = [] if vectors else ["--tokenizer", "byte"]
        arguments = [
            "--train_path", str(file), "--val_path", str(held_out),
            "--model_config", json.dumps({**SMALL, **(model or {})}),
            "--lr", "5e-3", "--max_steps", str(steps), "--work_dir", str(tmp_path / "runs"),
            "--logger", "none", "--experiment_name", "run", *tokenizer, *more,
        ]  # fmt: skip
        assert trainer.main(arguments) == 0
        return tmp_path / "runs" / "run" / "best", capsys.readouterr().out

    return run


def random_words(count, seed=0):
    random = np.random.default_rng(seed)
    return ["".join(random.choice(list("abcd"), random.integers(3, 9))) for _ in range(count)]


@pytest.mark.usefixtures("real_pictures")
def test_classification_end_to_end(train, tmp_path, capsys):
    records = [
        {"input": text, "label": "has a" if "a" in text else "none"} for text in random_words(400)
    ]
    test = write(tmp_path / "test.jsonl", records[200:300])
    best, out = train(
        records, "--task", "classification", "--checkpoint_metric", "accuracy",
        "--test_path", str(test), "--task_config", '{"class_weights": "balanced"}',
    )  # fmt: skip
    assert "test accuracy" in out
    m = miniformer.load(best)
    assert m.task.classes == ["has a", "none"]
    answers = m.predict(["bcbcd", "bcabc"])
    assert [answer["label"] for answer in answers] == ["none", "has a"]
    assert sum(answers[0]["scores"].values()) == pytest.approx(1.0)
    card = (best / "README.md").read_text()
    assert "| test accuracy |" in card
    assert "On the test data:" in card
    assert "| class | predicted as has a | none |" in card
    assert (best / "answers.png").read_bytes().startswith(b"\x89PNG")
    assert f"predict {best}" in out
    assert cli.main(["predict", str(best), "bcbcd", "bcabc"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["label"] for line in lines] == ["none", "has a"]


def test_token_classification_end_to_end(train, tmp_path, capsys, monkeypatch):
    """Words with an a are names, and neighbors are one name."""
    random = np.random.default_rng(0)
    records = []
    for _ in range(200):
        tokens = random_words(int(random.integers(1, 9)), int(random.integers(1e9)))
        is_name = ["a" in token for token in tokens]
        before = [False, *is_name[:-1]]
        tags = [("I-x" if b else "B-x") if a else "O" for a, b in zip(is_name, before, strict=True)]
        records.append({"tokens": tokens, "tags": tags})
    test = write(tmp_path / "test.jsonl", records[100:150])
    best, out = train(
        records, "--task", "token_classification", "--test_path", str(test),
        "--val_check_interval", "60", steps=120,
    )  # fmt: skip
    assert "checkpoint_metric: span_f1" in out
    assert float(re.search(r"test .*accuracy ([0-9.]+)", out)[1]) > 0.8
    m = miniformer.load(best)
    assert (m.task.classes, m.task.scheme) == (["B-x", "I-x", "O"], "iob2")
    (answer,) = m.predict([["bcb", "abca", "caba", "ddd"]])
    assert answer["tokens"] == ["bcb", "abca", "caba", "ddd"]
    for entity in answer["entities"]:
        assert entity["text"] == " ".join(answer["tokens"][entity["start"] : entity["end"]])
    card = (best / "README.md").read_text()
    assert "| type | precision | recall | F1 | spans |" in card
    assert "m.predict([[" in card
    assert cli.main(["predict", str(best), "bcb abca caba ddd"]) == 0
    assert json.loads(capsys.readouterr().out)["tags"] == answer["tags"]
    lines = '["bcb", "abc"]\n{"tokens": ["abc"], "tags": ["O"]}\n["abc", 3]\n'
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    assert cli.main(["predict", str(best), "-"]) == 2
    result = capsys.readouterr()
    answers = [json.loads(line) for line in result.out.splitlines()]
    assert [x and x["tokens"] for x in answers] == [["bcb", "abc"], ["abc"], None]
    assert "standard input:3: has an integer as token 2; each must be a string" in result.err


def test_span_metric_of_classes_of_their_own_is_refused(train, tmp_path, capsys):
    records = [{"tokens": ["a", "b"], "tags": ["X", "Y"]}] * 20
    options = ["--task", "token_classification", "--checkpoint_metric", "span_f1"]
    with pytest.raises(AssertionError):
        train(records, *options)
    assert "checkpoint_metric=span_f1 needs tags of a scheme" in capsys.readouterr().err


def test_classification_of_pairs_end_to_end(train, capsys, monkeypatch):
    sample = random_words(300)
    records = [
        {"input": [text, text if n % 2 else text[::-1] + "d"], "label": n % 2}
        for n, text in enumerate(sample)
    ]
    best, _ = train(records, "--task", "classification", steps=20)
    assert json.loads((best / "config.json").read_text())["token_types"] == 4
    expected = miniformer.load(best).predict([("abc", "abc"), ["abc", "d"]])
    lines = '{"input": ["abc", "abc"], "label": 1}\n\n["abc", "d"]\n'
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    assert cli.main(["predict", str(best), "-"]) == 0
    actual = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["label"] for answer in actual] == [answer["label"] for answer in expected]
    assert cli.main(["predict", str(best), "no pair"]) == 2
    assert "input 'no pair': not JSON" in capsys.readouterr().err


def test_regression_of_vectors_end_to_end(train, capsys):
    random = np.random.default_rng(0)
    rows = [random.normal(size=(int(random.integers(2, 6)), 2)).round(3) for _ in range(400)]
    records = [
        {"input": [{"x": x, "y": y} for x, y in row], "value": 100 + 10 * float(row[:, 0].mean())}
        for row in rows
    ]
    best, out = train(records, "--task", "regression", "--batch_tokens", "64", steps=300)
    assert "validation rmse" in out
    assert "tokenizer" not in out
    assert not (best / "tokenizer.json").exists()
    m = miniformer.load(best)
    inputs = [record["input"] for record in records[:50]]
    values = [record["value"] for record in records[:50]]
    assert np.corrcoef(m.predict(inputs), values)[0, 1] > 0.9
    assert abs(np.mean(m.predict(inputs)) - np.mean(values)) < 3, "in the units of the data"
    assert cli.main(["predict", str(best), json.dumps(inputs[0])]) == 0
    assert float(capsys.readouterr().out) == pytest.approx(m.predict(inputs[:1])[0], rel=1e-5)
    with pytest.raises(ValueError, match="of vectors generates no text; use predict"):
        m.generate("a")


def test_regression_detects_a_series_and_predicts_new_levels(train):
    random = np.random.default_rng(0)
    records = []
    for _ in range(300):
        step = random.normal()
        walk = random.normal(0, 20) + step * np.arange(5)
        records.append({"input": walk[:4, None].tolist(), "value": float(walk[4])})
    best, out = train(records, "--task", "regression", steps=100)
    assert "task_config.target_delta_of: 0 (held-out records confirm" in out
    m = miniformer.load(best)
    answers = m.predict([[[1000.0], [1010.0], [1020.0], [1030.0]], [[3.0], [2.0], [1.0], [0.0]]])
    assert answers == pytest.approx([1040, -1], abs=1), "far higher than any of the training"


PHRASES = {
    "one two three four": "eins zwei drei vier",
    "the dog is here now": "der Hund ist jetzt hier",
    "a cat": "eine Katze",
    "we sing": "wir singen",
}


def test_seq2seq_learns_to_translate_and_reports_metrics(train, tmp_path):
    records = [{"source": source, "target": target} for source, target in PHRASES.items()]
    best, out = train(
        records * 20, "--task", "seq2seq", "--batch_size", "16", "--checkpoint_metric", "bleu",
        "--test_path", str(write(tmp_path / "test.jsonl", records * 9)),
        "--task_config", '{"eval_generate_samples": 20, "num_beams": 2}',
        model={"d_model": 64, "n_heads": 4},
    )  # fmt: skip
    assert "sample: 'one two three four -> " in out
    tokens = sum(len(f"{source}{target}".encode()) + 2 for source, target in PHRASES.items())
    assert f"training data: 80 records, {20 * tokens:,} tokens" in out
    assert re.search(r"validation loss [\d.]+, bleu 100.0000, chrf 100.0000, exact match 1.0", out)
    m = miniformer.load(best)
    assert m.predict(list(PHRASES)) == list(PHRASES.values())
    assert m.generate("a cat") == "eine Katze"
    card = (best / "README.md").read_text()  # of all of the test
    assert f"BLEU, chrF: beam search with 2 beams, {9 * len(PHRASES)} examples" in card


def test_seq2seq_with_separate_tokenizers(train, tmp_path):
    records = [{"source": source, "target": target} for source, target in PHRASES.items()]
    best, out = train(
        records * 20, "--task", "seq2seq", "--batch_size", "16", "--tokenizer", "char",
        "--source_tokenizer", "wordpiece", model={"d_model": 64, "n_heads": 4},
    )  # fmt: skip
    assert re.search(r"tokenizer: of targets char, \d+ ids.*; of sources wordpiece, \d+ ids", out)
    m = miniformer.load(best)
    letters = set("".join(PHRASES.values()))
    assert m.model.config.vocab_size == m.tokenizer.vocab_size <= len(letters) + 3
    assert m.model.config.source_vocab_size == m.tokenizer.separate_source_tokenizer.vocab_size
    assert m.tokenizer.separate_source_tokenizer.encode(
        "the dog"
    ) == m.tokenizer.separate_source_tokenizer.encode("the  dog")
    assert m.predict(list(PHRASES)) == list(PHRASES.values())
    # The tokenizers of one model serve another.
    reloaded, _ = train(
        records, "--task", "seq2seq", "--tokenizer", str(best), "--source_tokenizer",
        str(best / "source_tokenizer"), "--experiment_name", "again", steps=2,
    )  # fmt: skip
    reloaded = reloaded.parent.with_name("again") / "best"
    for name in ("tokenizer.json", "source_tokenizer/tokenizer.json"):
        assert (reloaded / name).read_text() == (best / name).read_text()
    (best / "source_tokenizer" / "tokenizer.json").write_text(
        Tokenizer.train("byte", []).backend.to_str()
    )
    with pytest.raises(UserError, match="ids, more than the model's source_vocab_size="):
        miniformer.load(best)


def test_trainer_command_of_the_specification(tmp_path):
    """The command as in the specification, with fewer epochs."""
    write_jsonl(tmp_path / "train.jsonl", [VERSE[:40], VERSE[30:90], VERSE] * 8)
    write_jsonl(tmp_path / "val.jsonl", [VERSE])
    (tmp_path / "data").mkdir()
    for name in ("train.jsonl", "val.jsonl"):
        (tmp_path / name).rename(tmp_path / "data" / name)
    model = '{"vocab_size":50257,"d_model":384,"n_heads":6,"n_layers":6,"activation":"swiglu"}'
    done = run_python(
        "-m", "miniformer.trainer", "--train_path", "data/train.jsonl",
        "--val_path", "data/val.jsonl", "--task", "language_modeling", "--model", "seq2seq",
        "--model_config", model, "--batch_size", "16", "--max_epochs", "1", "--lr", "5e-4",
        "--scheduler", "cosine", "--logger", "tensorboard", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "validation loss" in done.stdout
    m = miniformer.load(tmp_path / "runs" / "language_modeling" / "best")
    assert type(m.model).__name__ == "Seq2SeqTransformer"
    assert isinstance(m.generate("The cat", max_new_tokens=3), str)


def test_prefix_lm_end_to_end(train):
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    best, _ = train([{"text": alphabet}] * 40, "--model", "seq2seq", steps=400)
    m = miniformer.load(best)
    assert m.generate("abcdefghijklm", max_new_tokens=30, temperature=0) == "nopqrstuvwxyz"


EXTERNAL = '''
"""A custom task: parity of the length of an input, as one of two classes."""

import dataclasses
from typing import ClassVar

from miniformer.data.reading import schema
from miniformer.tasks.classification import Classification


@dataclasses.dataclass(frozen=True)
class Parity(Classification):
    """`{"input": ...}` records; the label is the parity of its length."""

    name: ClassVar[str] = "parity"

    @property
    def schema(self):
        return {"input": schema.check_text}

    def fit(self, records):
        return dataclasses.replace(self, classes=["even", "odd"], input_kind="text")

    def encode(self, records, tokenizer, seq_len):
        labelled = [
            {**record, "label": "odd" if len(record["input"]) % 2 else "even"} for record in records
        ]
        return super().encode(labelled, tokenizer, seq_len)
'''


def test_custom_task_is_one_file_and_one_registration(tmp_path):
    (tmp_path / "parity.py").write_text(EXTERNAL)
    info = tmp_path / "parity-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: parity\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[miniformer.task]\nparity = parity:Parity\n")
    write(tmp_path / "train.jsonl", [{"input": text} for text in random_words(50)])
    script = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from miniformer import trainer, load
code = trainer.main(sys.argv[1:])
print(load("runs/parity/best").predict(["ab", "abc"])[0]["label"])
sys.exit(code)
"""
    done = run_python(
        "-c", script, "--train_path", "train.jsonl", "--val_path", "train.jsonl",
        "--task", "parity", "--model_config", json.dumps(SMALL), "--tokenizer", "byte",
        "--max_steps", "3", "--logger", "none", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] in ("even", "odd")


def test_stream_of_a_pipe_is_trained_on(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    line = (json.dumps({"text": VERSE}) + "\n").encode()

    def feed():
        try:
            with pipe.open("wb") as stream:
                for _ in range(100_000):
                    stream.write(line)
        except BrokenPipeError:
            pass

    threading.Thread(target=feed, daemon=True).start()
    command = [
        sys.executable, "-m", "miniformer.trainer", "--train_path", "-", "--streaming", "true",
        "--model_config", json.dumps(SMALL), "--tokenizer", "byte", "--max_steps", "5",
        "--logger", "none", "--batch_size", "4",
    ]  # fmt: skip
    with pipe.open("rb") as stream:
        done = subprocess.run(
            command, stdin=stream, capture_output=True, text=True, timeout=100, cwd=tmp_path,
            env=environment(), check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "training data: a stream" in done.stdout
    assert miniformer.load(tmp_path / "runs" / "language_modeling" / "last").generate("a")


def streamed(monkeypatch, tmp_path, lines):
    """Trains on lines of standard input; returns the exit code."""
    given = io.TextIOWrapper(io.BytesIO("".join(lines).encode()))
    monkeypatch.setattr(sys, "stdin", given)
    return trainer.main([
        "--train_path", "-", "--streaming", "true", "--model_config", json.dumps(SMALL),
        "--tokenizer", "byte", "--max_steps", "1000", "--logger", "none", "--batch_size", "4",
        "--work_dir", str(tmp_path),
    ])  # fmt: skip


def test_stream_that_ends_early_ends_the_run(monkeypatch, tmp_path, capsys):
    assert streamed(monkeypatch, tmp_path, [json.dumps({"text": VERSE}) + "\n"] * 40) == 0
    (steps,) = re.findall(r"the stream ended after (\d+) steps", capsys.readouterr().out)
    assert 1 <= int(steps) < 1000
    assert miniformer.load(tmp_path / "language_modeling" / "last").generate("a")
    assert streamed(monkeypatch, tmp_path, []) == 2
    assert "the stream ended before the first optimizer step" in capsys.readouterr().err


def test_train_path_of_several_files_and_patterns(train, tmp_path):
    for number in range(3):
        write(tmp_path / f"part{number}.jsonl", [{"text": VERSE}] * 5)
    _, out = train([{"text": VERSE}], path=tmp_path / "part*.jsonl", steps=2)
    assert "training data: 15 records" in out
    listed = json.dumps([str(tmp_path / "part0.jsonl"), str(tmp_path / "part1.jsonl")])
    _, out = train([{"text": VERSE}], "--experiment_name", "two", path=listed, steps=2)
    assert "training data: 10 records" in out


def test_train_path_larger_than_memory_limit(train, monkeypatch):
    monkeypatch.setattr("miniformer.data.batching.chunks.MAX_IN_MEMORY_BYTES", 100)
    monkeypatch.setattr("miniformer.data.batching.chunks._CHUNK_BYTES", 500)
    best, out = train([{"text": VERSE}] * 30, "--max_epochs", "3", steps=1000)
    assert "training data: 30 records\n" in out
    rows = (best.parent / "metrics.jsonl").read_text().splitlines()
    losses = [row["val_loss"] for row in map(json.loads, rows) if "val_loss" in row]
    assert losses[-1] < losses[0]


def mistake(capsys, arguments):
    assert trainer.main(arguments) == 2
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return err


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--model", "seq2seq"], "task=classification needs model=encoder"),
        (["--task_config", '{"smoothing": 1}'], "task_config: Classification: unknown field"),
        (["--checkpoint_metric", "acuracy"], "unknown checkpoint_metric 'acuracy' (did you mean"),
        (["--model_config", '{"output_dim": 7}'], "output_dim must be 2 for this data, not 7"),
        (["--streaming", "true"], "streaming needs max_steps or max_time"),
        (["--source_tokenizer", "byte"], "source_tokenizer is for tasks with sources and targets"),
        (["--model_config", '{"source_vocab_size": 9}'], "source_vocab_size=9 needs a separate"),
        (["--seq_len", "4096"], "seq_len=4096 is longer than the model's max_seq_len=1024"),
    ],
)
def test_task_rejects_settings_of_other_tasks(tmp_path, capsys, more, expected):
    path = write(tmp_path / "a.jsonl", [{"input": "a", "label": n} for n in range(2)])
    arguments = [
        "--train_path", str(path), "--val_path", str(path), "--task", "classification",
        "--work_dir", str(tmp_path / "runs"), "--tokenizer", "byte", *more,
    ]  # fmt: skip
    assert expected in mistake(capsys, arguments)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("task", "content", "expected"),
    [
        ("classification", b'{"input": "a", "label": 0}\n{"input": "b", "label": "x"}\n',
         "bad.jsonl:2: 'label' is 'x', a name, but that of"),
        ("classification", b'{"input": "a", "label": 0}\n{"input": "b", "label": null}\n',
         "bad.jsonl:2: 'label' is null; give the class a name or a number"),
        ("regression", b'{"input": [[1, NaN]], "value": 1}\n', "bad.jsonl:1: 'input' vector 1 "),
        ("regression", b'{"input": [[1, 2], [3]], "value": 1}\n',
         "bad.jsonl:1: 'input' vector 2 has 1 numbers, the first has 2"),
        ("regression", b'{"input": "a", "value": 1, "value": 2}\n', "bad.jsonl:1: "),
        ("seq2seq", b'{"source": "a", "target": "b"}\n{"source": "a"}\n',
         "bad.jsonl:2: the record has no 'target'"),
        ("seq2seq", b'{"source": "a\xff", "target": "b"}\n', "bad.jsonl:1: "),
        ("language_modeling", b'{"text": "a"}\n{"text": "b', "bad.jsonl:2: not JSON"),
    ],
)  # fmt: skip
def test_record_error_names_file_and_line(tmp_path, capsys, task, content, expected):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(content)
    arguments = ["--train_path", str(path), "--task", task, "--work_dir", str(tmp_path / "runs")]
    assert expected in mistake(capsys, arguments)
    assert not (tmp_path / "runs").exists()


def test_files_with_byte_order_mark_crlf_and_blank_lines(train, tmp_path):
    path = tmp_path / "windows.jsonl"
    lines = [json.dumps({"text": VERSE})] * 3 + ["", "  "]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    _, out = train([{"text": VERSE}], path=path, steps=2)
    assert "training data: 3 records" in out


def test_truncated_targets_are_counted(train):
    records = [{"source": "ab", "target": "c" * n} for n in (3, 30)] * 5
    _, out = train(records, "--task", "seq2seq", "--seq_len", "16", steps=2)
    assert "warning: 5 of 10 train examples were cut to seq_len=16 or the task's own limits" in out
