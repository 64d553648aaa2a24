"""`miniformer export --to gguf` and `miniformer import FILE.gguf`."""

import ctypes
import sys
import types

import gguf
import numpy as np
import pytest
import torch

import miniformer
from miniformer import cli
from miniformer.config import UserError
from miniformer.exporters import gguf as exporter
from miniformer.exporters import llama_cpp
from miniformer.exporters.source import read_source
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


@pytest.mark.catches("gguf_reports_the_mean_difference")
def test_the_largest_difference_is_reported(directory, tmp_path, monkeypatch):
    source = read_source(directory)

    class Runtime:
        """Logits of the model, one of which is wrong."""

        def __init__(self, path, context, *, encoder):
            assert (context, encoder) == (64, False)

        def __enter__(self):
            return self

        def __exit__(self, *args):
            pass

        def logits(self, ids):
            result = source.model(torch.tensor([ids]))[0].detach().numpy()
            result[0, 3] += 0.25
            return result

    monkeypatch.setattr(llama_cpp, "LlamaCpp", Runtime)
    relative, text = exporter.compare(source, tmp_path / "model.gguf")
    assert relative > 0.02
    assert text.startswith("compared with llama.cpp: logits differ by 2.5e-01 at most; greedy text")
    assert "differs" not in text
    monkeypatch.setattr(exporter, "_RUNTIME", "numpy")  # is installed
    with pytest.raises(UserError, match="logits differ"):
        exporter.export_gguf(directory, str(tmp_path / "bad.gguf"), weights="f32")
    assert not (tmp_path / "bad.gguf").exists()


@pytest.mark.catches("llama_cpp_rounds_keys_and_values")
def test_calls_of_llama_cpp(tmp_path, monkeypatch):
    """A library that returns the tokens of a batch and their positions as logits."""
    settings, seen = types.SimpleNamespace(), []

    class Batch(types.SimpleNamespace):
        def __init__(self, size, *_):
            rows = [[0] for _ in range(size)]
            super().__init__(
                n_tokens=0, token=[0] * size, pos=[0] * size, n_seq_id=[0] * size, seq_id=rows,
                logits=[False] * size,
            )  # fmt: skip

    def decode(context, batch):
        seen[:] = [*zip(batch.token, batch.pos, strict=True)]
        assert batch.n_tokens == len(batch.token)
        assert all(batch.logits)
        return 0

    library = types.ModuleType("llama_cpp")
    functions = {
        "llama_log_set": lambda *args: None,
        "llama_backend_init": lambda: None,
        "llama_model_default_params": types.SimpleNamespace,
        "llama_model_load_from_file": lambda path, options: "model",
        "llama_context_default_params": lambda: settings,
        "llama_init_from_model": lambda model, options: "context",
        "llama_model_get_vocab": lambda model: "vocab",
        "llama_vocab_n_tokens": lambda vocab: 2,
        "llama_model_n_embd": lambda model: 2,
        "llama_get_memory": lambda context: None,
        "llama_batch_init": Batch,
        "llama_batch_free": lambda batch: None,
        "llama_decode": decode,
        "llama_encode": None,
        "llama_get_logits": lambda context: ctypes.cast(
            (ctypes.c_float * 4)(*np.ravel(seen)), ctypes.POINTER(ctypes.c_float)
        ),
        "llama_free": lambda context: None,
        "llama_model_free": lambda model: None,
    }
    for name, function in functions.items():
        setattr(library, name, function)
    monkeypatch.setitem(sys.modules, "llama_cpp", library)
    with llama_cpp.LlamaCpp(tmp_path / "model.gguf", 64) as runtime:
        assert runtime.logits([7, 9]).tolist() == [[7, 0], [9, 1]]
    assert (settings.type_k, settings.type_v, settings.n_ctx) == (0, 0, 64)
