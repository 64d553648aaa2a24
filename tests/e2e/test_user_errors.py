"""User errors: exit code 2, one message with the problem and the fix, no traceback."""

import io
import json
import sys

import pytest

import miniformer
from miniformer import cli, trainer
from miniformer.config import NoEffectWarning, UserError
from tests.kit import VERSE, tiny_model, write_jsonl

SMALL = {"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 64}


def mistake(capsys, command, arguments):
    """Runs a command that must fail, and returns its message."""
    assert command(arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith("miniformer: error: ")
    assert "Traceback" not in out + err
    assert err.count("miniformer: error:") == 1
    return err


@pytest.fixture
def train_with(tmp_path, capsys):
    """Runs the training command with one mistake, and returns the message."""
    good = write_jsonl(tmp_path / "good.jsonl", [VERSE])

    def run(*more, path=good, **model):
        work_dir = tmp_path / "runs"
        arguments = [
            "--train_path", str(path), "--model_config", json.dumps({**SMALL, **model}),
            "--max_steps", "1", "--logger", "none", "--work_dir", str(work_dir), *more,
        ]  # fmt: skip
        message = mistake(capsys, trainer.main, arguments)
        assert not work_dir.exists(), "a run that cannot start must leave no files"
        return message

    return run


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"text": "fine"}\n{"text": "cut', "bad.jsonl:2: not JSON"),
        (
            '{"text": "fine"}\n{"txt": "x"}\n',
            "bad.jsonl:2: the record has no 'text' (it has 'txt')",
        ),
        ("", "bad.jsonl: the file is empty; it needs at least one record"),
        pytest.param(
            '{"text": ""}\n{"text": " "}\n',
            "bad.jsonl: every record's text is empty",
            marks=pytest.mark.catches("training_takes_empty_files"),
        ),
        (
            '{"text": [{"text": "a", "learn": false}]}\n{"text": " "}\n',
            "bad.jsonl: no record has anything to learn: each text is a prompt or has learn=false",
        ),
        (
            '{"messages": [{"role": "user", "content": "a"}, '
            '{"role": "assistant", "content": "b", "learn": false}]}\n',
            "bad.jsonl: no record has anything to learn: each text is a prompt or has learn=false",
        ),
        (
            '{"text": "a\\ud83d"}\n',
            "bad.jsonl:1: character 1 of 'text' is '\\ud83d', half of a surrogate pair",
        ),
    ],
)
def test_error_of_a_bad_data_file(train_with, tmp_path, content, expected):
    bad = tmp_path / "bad.jsonl"
    bad.write_text(content)
    assert expected in train_with(path=bad)
    assert expected in train_with("--val_path", str(bad))


def test_error_of_a_missing_file(train_with, tmp_path):
    assert "missing.jsonl: No such file or directory" in train_with(path=tmp_path / "missing.jsonl")


def test_error_of_a_missing_train_path(capsys):
    assert "train_path is missing: name a file to train on, such as" in mistake(
        capsys, trainer.main, []
    )


def test_error_of_a_vocab_size_below_the_ids(train_with):
    message = train_with("--tokenizer", "byte", vocab_size=100)
    assert "vocab_size=100 is too small for a byte tokenizer, which needs 258" in message


def test_error_of_a_vocab_size_below_the_tokenizer(train_with, tmp_path):
    path = tmp_path / "tokenizer.json"
    miniformer.Tokenizer.train("byte", []).save(path)
    message = train_with("--tokenizer", str(path), vocab_size=100)
    assert "vocab_size=100 is smaller than the tokenizer's 258 ids" in message


def test_error_of_heads_that_do_not_divide_d_model(train_with):
    message = train_with(d_model=30, n_heads=4)
    assert "d_model=30 is not divisible by n_heads=4; use d_model=32" in message


@pytest.mark.catches("unknown_flag_gets_no_suggestion")
@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--batchsize", "unknown flag --batchsize; did you mean --batch_size?"),
        ("--xyzzy", "unknown flag --xyzzy; see --help"),
        ("--train_pat", "unknown flag --train_pat; did you mean --train_path?"),
    ],
)
def test_error_of_an_unknown_flag(train_with, flag, expected):
    assert expected in train_with(flag, "3")
    assert expected in train_with(f"{flag}=3")


def test_error_of_an_unknown_model_config_key(train_with):
    assert "unknown field 'n_layer' (did you mean 'n_layers'?)" in train_with(n_layer=2)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("bach_size: 3\n", "recipe.yaml: unknown field 'bach_size'; did you mean batch_size?"),
        ("lr: [1\n b: {", "recipe.yaml: not YAML: while parsing a flow sequence"),
        ("- 1\n", "recipe.yaml: expected flags and their values"),
        ("lr: fast\n", "lr must be a number or null, not fast"),
        (None, "recipe.yaml: no such file"),
    ],
)
def test_error_of_an_invalid_yaml_file(train_with, tmp_path, content, expected):
    path = tmp_path / "recipe.yaml"
    if content is not None:
        path.write_text(content)
    assert expected in train_with("--config", str(path))


def test_error_of_a_seq_len_above_max_seq_len(train_with):
    message = train_with("--seq_len", "65")
    assert "seq_len=65 is longer than the model's max_seq_len=64; lower seq_len or set" in message


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--lr", "fast"], "lr must be a number or null, not fast"),
        (["--max_steps", "ten"], "max_steps must be an integer or null, not ten"),
        (["--deterministic", "maybe"], "deterministic must be true or false, not maybe"),
        (["--seed", "4294967296"], "seed must be at most 4294967295, not 4294967296"),
        (["--val_check_interval", "5"], "val_check_interval needs val_path"),
        (["stray"], "unexpected argument 'stray'"),
        (["--lr", "-1"], "lr must be at least 0.0, not -1.0"),
        (["--batch_size", "0"], "batch_size must be at least 1, not 0"),
        (["--tokenizer", "bqe"], "unknown tokenizer 'bqe' (did you mean 'bpe'?)"),
        (["--tokenizer", "no.json"], "no.json: no such tokenizer file"),
        (["--task", "translation"], "unknown task 'translation'"),
        (["--model_config", "d_model"], "model_config must be an object, such as {"),
        (
            ["--model_config", "{d_model"],
            "model_config must be an object, and {d_model is not JSON or YAML: expected ',' or '}'",
        ),
        (["--logger", "wandb"], "logger=wandb needs the package wandb"),
        (["--accelerator", "cuda"], "accelerator=cuda"),
    ],
)
def test_error_of_a_value_out_of_range(train_with, more, expected, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert expected in train_with(*more)


def test_error_of_a_work_dir_that_is_a_file(tmp_path, capsys):
    data = write_jsonl(tmp_path / "a.jsonl", [VERSE])
    arguments = [
        "--train_path",
        str(data),
        "--model_config",
        json.dumps(SMALL),
        "--work_dir",
        str(data),
    ]
    assert "work_dir: cannot create" in mistake(capsys, trainer.main, arguments)


@pytest.mark.catches("work_dir_is_tested_after_the_preparation")
def test_error_of_a_work_dir_comes_before_the_preparation(tmp_path, capsys, monkeypatch):
    """A wide head, or trials, may take minutes before the folder of the run is created."""
    monkeypatch.setattr("miniformer.training.run.prepare", lambda *args: pytest.fail("prepared"))
    data = write_jsonl(tmp_path / "a.jsonl", [VERSE])
    for work_dir in (data, data / "runs", "/proc/no-such-folder"):
        arguments = ["--train_path", str(data), "--work_dir", str(work_dir)]
        assert f"work_dir: cannot create {work_dir}: " in mistake(capsys, trainer.main, arguments)


@pytest.mark.catches("user_errors_exit_with_0")
def test_error_of_an_unknown_subcommand(capsys):
    assert "tran" in mistake(capsys, cli.main, ["tran"])
    assert "unknown flag --minutes" in mistake(capsys, cli.main, ["train", "--minutes"])


@pytest.mark.parametrize("minutes", ["inf", "nan", "x"])
def test_error_of_a_demo_without_minutes(capsys, minutes):
    message = mistake(capsys, cli.main, ["demo", "--minutes", minutes])
    assert f"minutes must be a number, not {minutes}" in message


@pytest.mark.parametrize("minutes", ["-1", "0", "0.001", "1e9"])
def test_error_of_a_demo_of_nan_or_infinite_minutes(capsys, minutes):
    message = mistake(capsys, cli.main, ["demo", "--minutes", minutes])
    assert f"minutes must be from 0.01 to 10000, not {float(minutes)}" in message


def test_error_of_a_demo_directory_that_is_a_file(tmp_path, capsys):
    path = tmp_path / "file"
    path.write_text("")
    message = mistake(capsys, cli.main, ["demo", "--work_dir", str(path)])
    assert f"work_dir: cannot write {path}/demo-data: Not a directory" in message


def test_error_of_a_work_dir_that_is_a_broken_link(tmp_path, capsys):
    data = write_jsonl(tmp_path / "a.jsonl", [VERSE])
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "gone" / "away")
    arguments = ["--train_path", str(data), "--model_config", json.dumps(SMALL)]
    message = mistake(capsys, trainer.main, [*arguments, "--work_dir", str(link)])
    assert f"work_dir: cannot create {link}" in message


@pytest.fixture
def directory(tmp_path):
    """A model directory, complete and untrained."""
    from miniformer.checkpoint.directory import save_directory
    from miniformer.config import GenerationConfig
    from miniformer.tasks.language_modeling import LanguageModeling

    save_directory(
        tmp_path / "model",
        model=tiny_model(vocab_size=258),
        tokenizer=miniformer.Tokenizer.train("byte", []),
        task=LanguageModeling(prepend_bos=False).settings(),
        generation=GenerationConfig(eos_id=0),
        model_card="",
    )
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--temperature", "-1"], "temperature must be at least 0.0, not -1.0"),
        (["--top_p", "2"], "top_p must be at most 1.0, not 2.0"),
        (["--topp", "0.5"], "unknown flag --topp; did you mean --top_p?"),
        (["--seed", str(2**63)], "seed must be at most 9223372036854775807"),
        (["--max_steps", "1"], "unknown flag --max_steps"),
        (["\ud83d"], "prompt: character 0 is '\\ud83d', an unpaired surrogate"),
        (["--max_new_tokens", "30"], "a prompt of 5 tokens and max_new_tokens=30 exceed "
                                     "max_seq_len=32; ask for at most 27 new tokens"),
    ],
)  # fmt: skip
def test_error_of_invalid_generation_options(directory, capsys, more, expected):
    assert expected in mistake(capsys, cli.main, ["generate", str(directory), "abcde", *more])


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("config.json", None, "not a model directory: config.json is missing"),
        ("config.json", b"{", "config.json: not a model config"),
        ("config.json", b"[1]", "config.json: not a model config"),
        ("config.json", b'{"architecture": "Transformer", "d_modl": 3}', "did you mean 'd_model'?"),
        ("config.json", b'{"architecture": "Perceiver"}', "holds a Perceiver, not a Transformer"),
        ("config.json", b'{"architecture": "Transformer"}', "tensors do not match config.json"),
        ("format_version", b"99", "format version 99; this version of Miniformer reads 1 and 2"),
        ("model.safetensors", None, "a model directory needs its weights"),
        ("model.safetensors", b"\x80\x04pickle", "not a readable safetensors file"),
        ("tokenizer.json", None, "no such tokenizer file"),
        ("tokenizer.json", b"{}", "not a tokenizer.json"),
        ("task.json", None, "a model directory needs its task"),
        ("task.json", b'{"task": "x", "prepend_bos": true}', "unknown task 'x'"),
        ("task.json", b'{"prepend_bos": true}', "not a task description"),
        ("task.json", b'{"task": "language_modeling", "prepend_bos": 1}', "not 1"),
        ("generation_config.json", b'{"top_q": 1}', "unknown field 'top_q'"),
    ],
)  # fmt: skip
def test_error_of_a_broken_model_directory(directory, capsys, name, content, expected):
    path = directory / name
    path.unlink() if content is None else path.write_bytes(content)
    assert expected in mistake(capsys, cli.main, ["generate", str(directory), "a"])


@pytest.mark.catches("tokenizer_of_another_model_is_taken")
def test_error_of_a_tokenizer_of_another_model(directory, capsys):
    tiny_model(vocab_size=100).save_pretrained(directory)
    message = mistake(capsys, cli.main, ["generate", str(directory), "a"])
    assert "tokenizer.json: has 258 ids, more than the model's vocab_size=100" in message


def test_error_of_a_missing_model_directory(capsys):
    message = mistake(capsys, cli.main, ["generate", "nowhere", "a"])
    assert "nowhere: no such model directory" in message


def test_error_of_standard_input_that_is_not_utf8(directory, capsys, monkeypatch):
    given = io.TextIOWrapper(io.BytesIO(b"caf\xe9 "), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", given)
    assert "standard input: 'utf-8'" in mistake(capsys, cli.main, ["generate", str(directory), "-"])


@pytest.mark.parametrize("option", [{"top_k": 5}, {"top_p": 0.5}, {"seed": 1}])
def test_warning_of_an_option_without_effect(directory, option):
    ((name, value),) = option.items()
    pipeline = miniformer.load(directory)
    with pytest.warns(NoEffectWarning, match=f"{name}={value} has no effect with temperature=0"):
        pipeline.generate("a", temperature=0, max_new_tokens=1, **option)


def test_warning_on_the_command_line_is_one_line(directory, capsys):
    arguments = ["--temperature", "0", "--seed", "1", "--max_new_tokens", "1"]
    assert cli.main(["generate", str(directory), "a", *arguments]) == 0
    assert capsys.readouterr().err == (
        "miniformer: warning: seed=1 has no effect with temperature=0\n"
    )


def test_error_of_an_unknown_pipeline_option(directory):
    with pytest.raises(UserError, match="did you mean 'temperature'"):
        miniformer.load(directory).generate("a", temprature=1.0)
