"""The training command: files without a flag, and the flags that are no settings."""

import json
import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from miniformer import cli, trainer
from miniformer.config import UserError
from miniformer.config.command_line import parse_flags
from miniformer.train_config import TrainConfig

RECORDS = [{"input": f"{word} film {n}", "label": word} for word in ("good", "bad") for n in "123"]
SMALL = {"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 32}


@pytest.fixture
def train_file(tmp_path, monkeypatch):
    """Name of a training file in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    return "a.jsonl"


def parse(*argv):
    return parse_flags(trainer.train_parser(), list(argv), defaults=False)


@pytest.mark.catches("files_are_read_before_flags_only")
@pytest.mark.parametrize(
    ("argv", "paths"),
    [
        (["a.csv"], "a.csv"),
        (["a.csv", "--lr", "0.1"], "a.csv"),
        (["--lr", "0.1", "a.csv"], "a.csv"),
        (["--lr=0.1", "a.csv"], "a.csv"),
        (["--quiet", "a.csv", "--lr", "0.1", "b.csv", "--dry_run"], ["a.csv", "b.csv"]),
        (["--lr", "0.1", "-", "--model_config.d_model", "8"], "-"),
        (["--train_path", "a.csv", "--lr", "0.1"], "a.csv"),
    ],
)
def test_train_files_without_a_flag_are_train_path(argv, paths):
    values = parse(*argv)
    assert values["train_path"] == paths
    assert values.get("lr", 0.1) == 0.1
    assert cli.make_parser("train", trainer).parse_args(["train"]) is not None


@pytest.mark.parametrize("argv", [["b", "--train_path", "a"], ["--train_path=a", "b"]])
def test_train_files_and_train_path_are_refused_together(argv, monkeypatch):
    monkeypatch.setattr(UserError, "num_commands", 1)
    with pytest.raises(UserError, match=r"'b': files without a flag are those of --train_path"):
        parse(*argv)


def test_train_file_overrides_the_config(tmp_path):
    (tmp_path / "c.yaml").write_text("train_path: b.csv\nlr: 0.5\n")
    values = parse("--config", str(tmp_path / "c.yaml"), "a.csv")
    assert (values["train_path"], values["lr"]) == ("a.csv", 0.5)


def print_config(capsys, *argv):
    assert cli.main(["train", *argv, "--print_config"]) == 0
    return capsys.readouterr().out


@pytest.mark.catches("printed_config_leaves_given_flags_out")
def test_print_config_is_a_template_with_given_values(capsys):
    text = print_config(capsys, "a.csv", "--lr", "1e-5", "--task_config", '{"r_drop": 1.0}')
    values = yaml.safe_load(text.replace("1e-05", "0.00001"))
    defaults = TrainConfig(train_path="a.csv").to_dict()
    assert values == {**defaults, "lr": 1e-5, "task_config": {"r_drop": 1.0}}
    assert "\n# peak learning rate; null: 0.005 for muon" in text
    assert max(map(len, text.splitlines())) <= 100


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "train_path": st.text(st.characters(exclude_categories=["C"]), min_size=1),
            "lr": st.floats(0, 1e30), "max_steps": st.integers(1, 10**9),
            "task_config": st.dictionaries(
                st.text("abc\u00e9 _", min_size=1), st.none() | st.booleans() | st.floats(-9, 9)
            ),
            "find_lr": st.booleans(), "model_size": st.sampled_from(["tiny", "base"]),
        },
    )
)  # fmt: skip
@settings(max_examples=15, deadline=None)
def test_print_config_round_trip(tmp_path_factory, values):
    from miniformer.config.flags.reference import config_template

    path = tmp_path_factory.mktemp("config") / "c.yaml"
    path.write_text(config_template(TrainConfig, values), encoding="utf-8")
    again = parse("--config", str(path))
    expected = {**TrainConfig(train_path="x").to_dict(), "train_path": "", **values}
    assert {name: again[name] for name in expected} == expected


@pytest.mark.catches("quiet_prints_progress")
def test_quiet_prints_the_result_only(train_file, capsys):
    argv = ["train", train_file, "--task", "classification", "--max_steps", "1", "--logger", "none"]
    argv += ["--tokenizer", "byte", "--model_config", json.dumps(SMALL), "--val_path", train_file]
    assert cli.main([*argv, "--warmup_steps", "1", "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert [line.partition(" ")[0] for line in out.splitlines()] == ["validation", "model:", "use"]
    assert err == ""


@pytest.mark.catches("dry_run_writes_a_run_folder")
def test_dry_run_prints_the_settings_and_writes_nothing(train_file, tmp_path, capsys):
    argv = ["train", "--task", "classification", "--max_epochs", "3", train_file, "--dry_run"]
    argv += ["--tokenizer", "byte", "--model_config", json.dumps(SMALL), "--batch_size", "2"]
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    given, resolved = re.search(
        r"settings given:\n((?:  .*\n)+)settings resolved:\n((?:  .*\n)+)", out
    ).groups()
    assert "  max_epochs: 3\n" in given
    assert "  scheduler: cosine (default)\n" in resolved
    steps = "dry run: nothing was trained or written\noptimizer steps: "
    assert re.search(
        steps + r"\d+ at most, [\d.e-]+ s each\nestimated time: \d.*\npredicted memory: \d+", out
    )
    assert [path.name for path in tmp_path.iterdir()] == [train_file]


@pytest.mark.catches("broken_object_is_only_no_object")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{d_model: 64", "expected ',' or '}', but got '<stream end>' at its end"),
        ('{"d_model": 64, "n_heads" 3}', "expected ',' or '}', but got '<scalar>' at character 27"),
        ("{d_model: [1", "expected ',' or ']', but got '<stream end>' at its end"),
    ],
)
def test_broken_object_is_named_with_its_place(text, message):
    with pytest.raises(UserError, match=re.escape(f"and {text} is not JSON or YAML: {message}")):
        parse("a", "--model_config", text)


def test_value_that_is_no_object_is_named():
    with pytest.raises(UserError, match=r"model_config must be an object, .* not d_model"):
        parse("a", "--model_config", "d_model")


@pytest.mark.catches("unknown_key_of_pretrain_is_found_late")
@pytest.mark.parametrize(
    ("flag", "text", "message"),
    [
        ("--pretrain", '{"max_epoch": 3}', "pretrain: unknown field 'max_epoch' (did you mean"),
        ("--task_config", '{"r_dorp": 1.0}', "unknown field 'r_dorp' (did you mean 'r_drop'?)"),
    ],
)
def test_misspelled_key_is_reported_before_data_is_read(flag, text, message, capsys):
    assert cli.main(["train", "missing.jsonl", "--task", "classification", flag, text]) == 2
    assert message in capsys.readouterr().err
