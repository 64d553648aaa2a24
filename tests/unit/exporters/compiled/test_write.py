"""Folders of programs: complete or absent, compared or not, and the messages."""

import json
import warnings

import pytest
import torch

from miniformer import UserError, cli, export, registry
from miniformer.exporters.compiled import write
from miniformer.exporters.compiled.flat import FlatView
from miniformer.exporters.compiled.write import Format, write_programs
from miniformer.exporters.destination import destination
from tests.kit import tiny_model

SCALE = {"factor": 1.0}  # of the outputs of the test format


def write_text(exported, program, path):
    path.write_text(f"{program.name} {len(program.inputs)}")


def load_view(path, program):
    assert path.read_text().startswith(program.name)
    warnings.warn("of the runtime", FutureWarning, stacklevel=1)
    return lambda inputs: [SCALE["factor"] * value for value in FlatView(program)(*inputs)]


TEXT = Format("text", ".txt", write_text, load_view, export=lambda program: None)


@destination("all models", runtime="a test")
def export_text(directory, out, *, verify=True):
    """Writes names."""
    from pathlib import Path

    return write_programs(TEXT, directory, Path(out), verify=verify)


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs `miniformer export`; returns the exit code and what it prints."""
    monkeypatch.setitem(registry._registered, "exporter", {"text": export_text})
    monkeypatch.setitem(SCALE, "factor", 1.0)
    monkeypatch.chdir(tmp_path)
    tiny_model(n_layers=1).save_pretrained(tmp_path / "model")

    def run(*arguments):
        code = cli.main(["export", *arguments, "--to", "text"])
        return code, "".join(capsys.readouterr())

    return run


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.catches(
    "verification_is_skipped", "any_difference_is_accepted", "names_are_in_the_wrong_order"
)
def test_export_compares_what_it_wrote(command, tmp_path, monkeypatch):
    code, text = command("model", "out")
    assert (code, names(tmp_path / "out")) == (0, ["decoder.txt", "export.json"])
    assert text.startswith("written to out; compared with the model: the largest difference is ")
    assert "greedy tokens are equal" in text
    monkeypatch.setitem(SCALE, "factor", 1.01)
    code, text = command("model", "other")
    assert code == 2
    assert "what was written differs from the model by " in text
    assert "; nothing is kept" in text
    assert names(tmp_path) == ["model", "out"]


def test_export_without_comparison_says_so(command, monkeypatch):
    monkeypatch.setitem(SCALE, "factor", 2.0)
    code, text = command("model", "out", "--no-verify")
    assert (code, text) == (0, "written to out; not compared with the model\n")


@pytest.mark.catches("half_written_folder_is_left")
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device"), "out: cannot be written: No space left on device"),
        (UserError("attention: x has no program"), "attention: x has no program"),
        (ValueError("no kernel\nof x"), "decoder.txt: text cannot compile this model; a part of"),
        (KeyboardInterrupt(), ""),
    ],
)
def test_export_that_fails_leaves_nothing(command, tmp_path, monkeypatch, error, message):
    def write_half(exported, program, path):
        path.write_text("half")
        raise error

    monkeypatch.setattr(f"{__name__}.TEXT", TEXT._replace(write=write_half))
    code, text = command("model", "out")
    assert code == (130 if isinstance(error, KeyboardInterrupt) else 2)
    assert message in text
    assert "Traceback" not in text
    assert names(tmp_path) == ["model"]


def test_folder_has_names_and_tokenizer(directories, tmp_path):
    export_text(directories / "classifier", tmp_path / "out", verify=False)
    assert names(tmp_path / "out") == [
        "export.json", "model.txt", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    about = json.loads((tmp_path / "out" / "export.json").read_text())
    assert about["names"] == {
        "model": {"inputs": ["input_ids", "attention_mask"], "outputs": ["logits"]}
    }
    assert about["task"]["classes"] == ["a", "b"]


def test_export_overwrites_nothing(command, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    code, text = command("model", "out")
    assert (code, "out: exists and is not empty; name another directory" in text) == (2, True)
    code, text = command("model", "file")
    assert (code, "file: is a file; name a directory" in text) == (2, True)
    assert names(tmp_path / "out") == ["mine"]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.catches("missing_package_is_reported_late")
def test_export_names_a_missing_package_first(command, tmp_path, monkeypatch):
    needs = destination("all", runtime="x", extra="gguf", packages=("no_such_package",))
    monkeypatch.setitem(registry._registered, "exporter", {"text": needs(export_text.__wrapped__)})
    code, text = command("model", "out")
    assert code == 2
    assert 'needs the package no_such_package; pip install "miniformer[gguf]"' in text
    code, text = command("no-model", "out")  # before the model is looked for
    assert "needs the package no_such_package" in text
    assert names(tmp_path) == ["model"]


def test_export_of_what_is_no_model(command, tmp_path):
    (tmp_path / "empty").mkdir()
    code, text = command("empty", "out")
    assert code == 2
    assert "empty" in text
    assert "Traceback" not in text
    with pytest.raises(UserError, match="export takes a Pipeline, a model or a model directory"):
        export(3, tmp_path / "out", to="text")
    with pytest.raises(UserError, match=r"unknown exporter 'onxx' \(did you mean 'onnx'\?\)"):
        export(tmp_path / "model", tmp_path / "out", to="onxx")
    assert names(tmp_path) == ["empty", "model"]


def test_export_takes_a_model_in_memory(tmp_path, monkeypatch):
    monkeypatch.setitem(registry._registered, "exporter", {"text": export_text})
    for number, model in enumerate([tiny_model(n_layers=1), tiny_model(causal=False)]):
        assert "largest difference" in export(model, tmp_path / str(number), to="text")
    assert names(tmp_path / "1") == ["export.json", "model.txt"]


def test_programs_are_exported_by_default():
    assert TEXT._replace(export=Format("", "", None, None).export).export is write.export_flat
    assert torch.is_grad_enabled()
