"""`miniformer export --to gguf` and `miniformer import FILE.gguf`."""

import sys

import gguf
import pytest

import miniformer
from miniformer import cli
from miniformer.exporters import gguf as exporter
from miniformer.registry.options import check_options
from tests.kit import tiny_model
from tests.unit.interop.gguf import cases


@pytest.fixture
def directory(tmp_path, monkeypatch):
    """The directory of a model alone, without llama.cpp."""
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    monkeypatch.setattr(exporter, "_RUNTIME", "llama_cpp_that_is_missing")
    cases.build("llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_model_goes_out_and_comes_back(directory, tmp_path, capsys):
    out = tmp_path / "out" / "tiny.gguf"
    assert cli.main(["export", str(directory), str(out), "--to", "gguf", "--weights", "q8_0"]) == 0
    text = capsys.readouterr().out
    assert f"written to {out}: llama, 30 tensors, 0.1 MB" in text
    assert "not compared with the model: llama_cpp_that_is_missing is missing; pip install" in text
    assert [item.name for item in out.parent.iterdir()] == ["tiny.gguf"]
    assert gguf.GGUFReader(out).fields["llama.context_length"].contents() == 64
    assert cli.main(["import", str(out), str(tmp_path / "back")]) == 0
    assert "llama: 3 layers of width 64" in capsys.readouterr().out
    assert miniformer.load(tmp_path / "back").model.config.n_kv_heads == 2


def test_errors_are_one_line(directory, tmp_path, capsys):
    out = tmp_path / "out"

    def run(*arguments):
        assert cli.main(["export", *arguments, "--to", "gguf"]) == 2
        error = capsys.readouterr().err.strip()
        assert error.count("\n") == 0
        return error

    assert "weights='int8' is none of f32, f16, bf16, q8_0" in run(
        str(directory), str(out), "--weights", "int8"
    )
    tiny_model(position="alibi").save_pretrained(tmp_path / "alibi")
    error = run(str(tmp_path / "alibi"), str(out))
    assert "llama.cpp has no architecture for this model; the nearest is gpt2" in error
    assert "position='alibi'" in error
    assert not out.exists() or not any(out.iterdir())
    (tmp_path / "old.gguf").write_bytes(b"GGUF")
    assert "old.gguf: " in run(str(directory), str(tmp_path / "old.gguf"))
    assert (tmp_path / "old.gguf").read_bytes() == b"GGUF"
    assert cli.main(["import", str(tmp_path / "old.gguf"), str(tmp_path / "back")]) == 2
    assert "old.gguf: damaged: the file ends within its header" in capsys.readouterr().err


def test_options_of_the_exporter():
    check_options(
        exporter.export_gguf, "gguf", {"weights": "f16", "verify": False}, num_args=2, label="to"
    )
    facts = exporter.export_gguf.destination
    assert (facts.extra, facts.packages) == ("gguf", ("gguf",))
