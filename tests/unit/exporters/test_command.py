"""`miniformer export` with registered formats."""

import pytest

from miniformer import cli, registry
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


def test_export_to_an_unknown_format_names_the_known(tmp_path, capsys):
    assert cli.main(["export", "a", "b", "--to", "hff"]) == 2
    assert "unknown exporter 'hff' (did you mean 'hf'?); known: hf, onnx" in capsys.readouterr().err
