"""Names of model directories: paths, names on the hub, and hints for mistakes."""

import huggingface_hub
import pytest

import miniformer
from miniformer import cli, registry
from miniformer.config import ConfigError, UserError
from miniformer.model.hub import resolve_directory
from miniformer.model.transformer import Transformer
from miniformer.train_config import TrainConfig
from miniformer.utils.names import name_problem
from tests.kit import tiny_model

BAD_NAMES = [
    "", " ", ".", "..", "../x", "a/b", "/a", "a/", "a\\b", "a\nb", "a\x00b", "a\x7f", "\ud800",
    "x" * 201, "\u00e9" * 101,
]  # fmt: skip
GOOD_NAMES = ["a", "a.b", "...", "..a", ".a", "caf\u00e9 \u65e5", "x" * 200, "\u00e9" * 100, "a-2"]


@pytest.mark.catches("names_may_leave_folder")
@pytest.mark.parametrize("name", BAD_NAMES)
def test_name_that_cannot_be_a_folder_is_rejected(name):
    assert name_problem(name) is not None
    with pytest.raises(ConfigError, match="experiment_name must be the name of a folder"):
        TrainConfig(train_path="a.txt", experiment_name=name)
    with pytest.raises(ValueError, match="cannot be registered"):
        registry.register("task", name, object())


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_name_of_a_folder_is_accepted(name, tmp_path):
    assert TrainConfig(train_path="a.txt", experiment_name=name).experiment_name == name
    (tmp_path / f"{name}-99.part").mkdir()


PATHS = [
    "val_path",
    "test_path",
    "init_from",
    "tokenizer",
    "source_tokenizer",
    "work_dir",
    "resume",
]


@pytest.mark.parametrize("field", PATHS)
def test_empty_path_is_rejected(field):
    with pytest.raises(ConfigError, match=f"{field} is empty; leave it out or give a path"):
        TrainConfig(train_path="a.txt", **{field: ""})


@pytest.fixture
def looked_up(monkeypatch):
    """Names that are looked up on the hub, which has none of them."""
    names = []

    def snapshot_download(name, **options):
        names.append(name)
        raise OSError("404: no such repository")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return names


MISTYPED = [
    "nowhere", "./a/b", "../a/b", "/a/b", "~/a", "a/b/c", "a//b", "a/", "models/nwe", "runs/demo",
    "demo/best", "demo/last", "a\\b", ".a/b", "a/.b", "-a/b", "a..b/c", "", "a/b c",
]  # fmt: skip


@pytest.mark.catches("mistyped_path_is_sent_to_hub")
@pytest.mark.parametrize("name", MISTYPED)
def test_mistyped_path_is_never_sent_to_hub(name, looked_up, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    for call in (miniformer.load, Transformer.from_pretrained, miniformer.from_hf):
        with pytest.raises(UserError, match=r"no such|not a model directory|is missing"):
            call(name)
    assert looked_up == []


@pytest.mark.parametrize("name", ["user/model", "some-org/model.v1_2-x", "a/b"])
def test_name_on_hub_is_looked_up(name, looked_up, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"{name}: no such directory, and the hub returned no"):
        resolve_directory(name)
    assert looked_up == [name]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The parent of a run's folder with two model directories."""
    monkeypatch.chdir(tmp_path)
    for name in ("best", "last"):
        tiny_model().save_pretrained(tmp_path / "runs" / "mine" / name)
    (tmp_path / "runs" / "other").mkdir()
    return tmp_path


HINTS = {
    "runs/mine": "runs/mine: not a model directory: format_version is missing; did you mean "
    "runs/mine/best?",
    "runs": "runs: not a model directory: format_version is missing; did you mean runs/mine/best?",
    "runs/mine/bset": "runs/mine/bset: no such model directory; did you mean runs/mine/best?",
    "runs/mien": "runs/mien: no such model directory; did you mean runs/mine/best?",
    "runs/mine/best/config.json": "config.json: a file, not a model directory; did you mean "
    "runs/mine/best?",
    "runs/other": "runs/other: not a model directory: format_version is missing\n",
}


@pytest.mark.catches("no_hint_of_nearest_model")
@pytest.mark.parametrize("path", HINTS)
@pytest.mark.parametrize(
    "command", [["predict", "DIR", "a"], ["generate", "DIR", "a"], ["score", "DIR", "a.txt"],
                ["export", "DIR", "out"]], ids=lambda arguments: arguments[0],
)  # fmt: skip
def test_commands_name_the_nearest_model_directory(run, path, command, capsys):
    assert cli.main([path if word == "DIR" else word for word in command]) == 2
    assert HINTS[path] in capsys.readouterr().err


def test_current_folder_is_a_model_directory(run, monkeypatch):
    monkeypatch.chdir(run / "runs" / "mine" / "best")
    assert Transformer.from_pretrained(".").config == tiny_model().config


def test_init_from_names_the_nearest_model_directory(run, capsys):
    (run / "a.txt").write_text("text")
    flags = ["train", "--train_path", "a.txt", "--init_from", "runs/mine"]
    assert cli.main(flags) == 2
    assert "did you mean runs/mine/best?" in capsys.readouterr().err


def test_resume_of_a_model_directory_names_its_run(run, capsys):
    (run / "runs" / "mine" / "train_config.json").write_text("{}")
    assert cli.main(["train", "--resume", "runs/mine/best"]) == 2
    assert "did you mean runs/mine?" in capsys.readouterr().err


@pytest.mark.catches("file_name_is_taken_as_text")
@pytest.mark.parametrize("command", ["predict", "generate"])
def test_file_name_in_place_of_a_text_is_rejected(run, command, capsys):
    (run / "new texts.txt").write_text("text")
    assert cli.main([command, "runs/mine/best", "new texts.txt"]) == 2
    message = capsys.readouterr().err
    assert "'new texts.txt' is the name of a file" in message
    source = "--input" if command == "predict" else "- <"
    assert f"{command} runs/mine/best {source} 'new texts.txt'" in message


@pytest.mark.parametrize("text", ["nowhere.txt", "README", "x" * 5000 + ".a", "a\0.b", "runs/mine"])
def test_text_that_is_not_a_file_is_accepted(run, text, capsys):
    (run / "README").write_text("text")  # a word that a user may well mean
    assert cli.main(["generate", "runs/mine/best", text]) == 2
    assert "name of a file" not in capsys.readouterr().err


@pytest.mark.catches("hub_omits_extra_files")
def test_extra_files_of_a_model_are_downloaded(tmp_path, monkeypatch):
    requested = []

    def snapshot_download(name, *, revision, allow_patterns):
        requested.append(allow_patterns)
        (tmp_path / "config.json").write_text('{"files": ["index.bin"]}')
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert resolve_directory("user/name") == tmp_path
    assert "index.bin" not in requested[0]
    assert "index.bin" in requested[1]
