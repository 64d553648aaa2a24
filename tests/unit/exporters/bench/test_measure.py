"""`miniformer export-bench`: each artifact in its own process, medians of interleaved rounds."""

import json

import pytest

from miniformer import UserError, cli
from miniformer.exporters.bench import child, measure
from tests.kit import tiny_model


@pytest.mark.catches("bench_results_are_not_stored", "size_is_that_of_the_folder_entry")
def test_export_bench_of_model_directories(tmp_path, monkeypatch, capsys):
    tiny_model(n_layers=1).save_pretrained(tmp_path / "decoder")
    tiny_model(n_layers=1, causal=False).save_pretrained(tmp_path / "encoder")
    monkeypatch.chdir(tmp_path)
    flags = ["--rounds", "1", "--tokens", "3", "--threads", "1", "--json", "results.json"]
    assert cli.main(["export-bench", "decoder", "encoder", *flags]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:3] == ["kind", "MB", "memory"]
    assert [line.split()[:2] for line in lines[1:]] == [
        ["decoder", "miniformer"], ["encoder", "miniformer"],
    ]  # fmt: skip
    decoder, encoder = json.loads((tmp_path / "results.json").read_text())
    files = (tmp_path / "decoder").iterdir()
    assert decoder["size_mb"] == pytest.approx(sum(x.stat().st_size for x in files) / 1e6)
    assert "classification_ms" not in decoder
    assert "token_ms" not in encoder
    for result, name in ((decoder, "token_ms"), (encoder, "classification_ms")):
        assert 1 < result["first_s"] < 60  # of a process that imports torch
        assert 0.01 < result[name] < 500
        assert 100 < result["memory_mb"] < 2000


def test_rounds_are_interleaved_and_medians_shown(tmp_path, monkeypatch):
    calls = []

    def one(kind, path, workload):
        calls.append(path.name)
        return {"first_s": float(len(calls) ** 2), "memory_mb": 5.0}

    monkeypatch.setattr(measure, "_measure", one)
    for name in ("a", "b"):
        (tmp_path / f"{name}.gguf").write_bytes(b"x" * 1000)
    paths = [str(tmp_path / "a.gguf"), str(tmp_path / "b.gguf")]
    first, second = measure.measure_all(paths, measure.Workload(4, 4, 1), 3)
    assert calls == ["a.gguf", "b.gguf"] * 3
    assert (first["first_s"], second["first_s"]) == (9.0, 16.0)
    assert (first["kind"], first["size_mb"], len(first["rounds"])) == ("gguf", 0.001, 3)
    table = measure.format_table([first, {**second, "token_ms": 1.234}]).splitlines()
    assert table[2].endswith("16.00        1.23")


@pytest.mark.catches("runtime_errors_are_hidden")
def test_export_bench_refuses_what_it_cannot_measure(tmp_path, capsys):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "export.json").write_text('{"to": "executorch"}')
    with pytest.raises(UserError, match="out: files of executorch are measured"):
        measure.find_kind(str(folder))
    (folder / "export.json").write_text('{"to": "pt2", "files": {"decoder": "none.pt2"}}')
    assert cli.main(["export-bench", str(folder), "--rounds", "1"]) == 2
    assert "out: cannot be measured: " in capsys.readouterr().err
    (folder / "export.json").write_text("[")
    with pytest.raises(UserError, match=r"export\.json: damaged"):
        measure.find_kind(str(folder))
    assert cli.main(["export-bench", str(folder), "--rounds", "0"]) == 2
    assert "rounds must be at least 1, not 0" in capsys.readouterr().err


@pytest.mark.catches("inputs_have_ids_beyond_the_vocabulary")
def test_ids_are_those_of_the_vocabulary():
    assert child.ids_below(5, 4) == [3, 0, 2, 4]
