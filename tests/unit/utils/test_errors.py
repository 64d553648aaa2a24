"""Messages of user errors: flags for commands, arguments for Python."""

import pickle

import pytest

import miniformer
from miniformer import UserError, cli
from miniformer.config import ConfigError
from miniformer.utils.errors import flags_as_arguments
from tests.kit import tiny_model


@pytest.mark.catches("values_of_flags_are_texts")
@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("set --encoding latin-1", "set encoding='latin-1'"),
        ("set --encoding latin-1.", "set encoding='latin-1'."),
        ("try --lr 0.1, or --steps 3; see", "try lr=0.1, or steps=3; see"),
        ("--find_lr true", "find_lr=True"),
        ("a longer --max_time", "a longer max_time"),
        ("--model_size or vocab_size", "model_size or vocab_size"),
        ("with --columns (the row: 1)", "with columns (the row: 1)"),
        ("as --columns text,column2", "as columns='text,column2'"),
        ("join them with --input_separator ' ', or", "join them with input_separator=' ', or"),
        ("--model_config.dropout 0.3, or", "model_config={'dropout': 0.3}, or"),
        ('--a.b.c "x y"', "a={'b': {'c': 'x y'}}"),
        ("--task x --input_field COLUMN", "task='x', input_field='COLUMN'"),
        ('--task_config \'{"a": [1, "b"]}\'', "task_config={'a': [1, 'b']}"),
        ("export with --no-verify", "export with verify=False"),
        ("without it: --options '{\"tokenizer\": false}'", "without it: tokenizer=False"),
        ("run miniformer train F --lr 3; or --lr 4", "run miniformer train F --lr 3; or lr=4"),
        ("(miniformer train F --lr 3) --lr 4", "(miniformer train F --lr 3) lr=4"),
        ("`torchrun --nnodes 2 -m miniformer.trainer ...`",) * 2,
        ("/bin/python -m miniformer.cli train --resume x",) * 2,
        ("no flags -- here, --, a--b, x --1 and pages 3--4",) * 2,
    ],
)
def test_flags_of_a_message_are_arguments(message, expected):
    assert flags_as_arguments(message) == expected
    assert str(UserError(message)) == expected


@pytest.mark.catches("commands_print_arguments", "python_errors_name_flags")
def test_a_command_prints_flags_and_python_names_arguments(tmp_path, capsys):
    path = tmp_path / "train.csv"
    path.write_bytes("text\nna\xefve\n".encode("latin-1"))
    for _ in range(2):
        assert cli.main(["train", str(path), "--work_dir", str(tmp_path)]) == 2
        assert "such as --encoding latin-1" in capsys.readouterr().err
        with pytest.raises(UserError, match="such as encoding='latin-1'"):
            miniformer.train(path, work_dir=str(tmp_path), quiet=True)
    model = tiny_model(causal=False, output_dim=3, wide_head=[{"type": "words", "size": 8}])
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="train with wide_head='off' to export"):
        miniformer.export(tmp_path / "model", tmp_path / "out", to="onnx")


def test_errors_keep_their_message_when_pickled():
    error = pickle.loads(pickle.dumps(ConfigError("train", ["set --lr 3"])))
    assert (str(error), error.args) == ("train: set lr=3", ("train: set --lr 3",))
