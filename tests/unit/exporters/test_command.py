"""`miniformer export` with registered formats."""

import pytest

import miniformer
from miniformer import cli, registry
from miniformer.checkpoint.pipeline import Pipeline
from miniformer.compression.exits.calibrate import calibrate_exit
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.classification import Classification
from tests.kit import tiny_model


def write_sizes(directory, out, *, digits=3):
    """Writes a file; returns nothing."""
    out_text = f"{directory.name} {digits}"
    with open(out, "w", encoding="utf-8") as file:
        file.write(out_text)


@pytest.mark.catches("exporters_get_no_options", "export_options_are_not_checked")
def test_export_calls_a_registered_exporter(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(registry._registered, "exporter", {"sizes": write_sizes})
    tiny_model().save_pretrained(tmp_path / "model")
    out = tmp_path / "sizes.txt"
    flags = ["export", str(tmp_path / "model"), str(out), "--to", "sizes"]
    assert cli.main([*flags, "--options", '{"digits": 5}']) == 0
    assert out.read_text() == "model 5"
    assert capsys.readouterr().out == f"written to {out}\n"
    assert cli.main([*flags, "--options", '{"digit": 5}']) == 2
    assert "to: sizes has no option 'digit' (did you mean 'digits'?)" in capsys.readouterr().err
    assert cli.main([*flags, "--family", "llama"]) == 2
    assert "to: sizes has no option 'family'" in capsys.readouterr().err


@pytest.mark.catches("export_drops_exits_silently")
@pytest.mark.parametrize("form", ["directory", "pipeline", "model"])
def test_export_names_the_exits_that_it_leaves_out(form, tmp_path, monkeypatch):
    monkeypatch.setitem(registry._registered, "exporter", {"sizes": write_sizes})
    model = tiny_model(
        vocab_size=258, n_layers=2, causal=False, output_dim=2, pooling="mean", max_seq_len=32
    )
    task = Classification(classes=["a", "b"], input_kind="text")
    Pipeline(model, Tokenizer.train("byte", []), task=task).save(tmp_path / "model")
    line = "without the early exits of early_exit.json: all layers are computed for each record"
    for name, expected in (("plain", ""), ("exits", f"\n{line}")):
        if name == "exits":
            records = [{"input": f"{n:x} is {n}", "label": "ab"[n % 2]} for n in range(60)]
            calibrate_exit(tmp_path / "model", records, max_loss=0.9)
        loaded = miniformer.load(tmp_path / "model")
        source = {"directory": tmp_path / "model", "pipeline": loaded, "model": loaded.model}[form]
        out = tmp_path / name
        assert miniformer.export(source, out, to="sizes") == f"written to {out}{expected}"


def test_export_to_an_unknown_format_names_the_known(tmp_path, capsys):
    assert cli.main(["export", "a", "b", "--to", "hff"]) == 2
    assert "unknown exporter 'hff' (did you mean 'hf'?); known: hf, onnx" in capsys.readouterr().err
