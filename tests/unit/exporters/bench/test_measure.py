"""`miniformer export-bench`: each artifact in its own process, medians of interleaved rounds."""

import json

import pytest

from miniformer import UserError, cli
from miniformer.exporters.bench import child, measure
from tests.kit import tiny_model

# A process that measures nothing: it prints what `child.py` prints.
CHILD = """
import json, sys
kind, path, workload = sys.argv[1:]
if path.endswith("broken"):
    sys.exit("no such runtime")
name = "token_ms" if path.endswith("decoder") else "classification_ms"
print("first", flush=True)
print(json.dumps({"memory_mb": 200.0, name: sum(json.loads(workload))}))
"""


@pytest.fixture
def measured_by_a_script(tmp_path, monkeypatch):
    (tmp_path / "child.py").write_text(CHILD)
    monkeypatch.setattr(measure, "_CHILD", tmp_path / "child.py")


@pytest.mark.catches("bench_results_are_not_stored", "size_is_that_of_the_folder_entry")
def test_export_bench_of_model_directories(tmp_path, monkeypatch, capsys, measured_by_a_script):
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
    assert (decoder["token_ms"], encoder["classification_ms"]) == (20, 20)
    for result in (decoder, encoder):
        assert 0 < result["first_s"] < 60
        assert result["memory_mb"] == 200


def test_child_generates_and_classifies(tmp_path):
    model = tiny_model(n_layers=1)
    model.save_pretrained(tmp_path / "decoder")
    tiny_model(n_layers=1, causal=False).save_pretrained(tmp_path / "encoder")
    decoder = child.Miniformer(str(tmp_path / "decoder"), 0)
    assert decoder.is_decoder
    assert [*decoder.tokens([3, 1, 4], 5)] == model.generate([[3, 1, 4]], 5, temperature=0)[0][3:]
    encoder = child.Miniformer(str(tmp_path / "encoder"), 0)
    assert not encoder.is_decoder
    encoder.classify([3, 1, 4])
    assert 100 < child.peak_memory() < 20_000


@pytest.mark.slow
def test_a_process_measures_a_model(tmp_path):
    tiny_model(n_layers=1).save_pretrained(tmp_path / "decoder")
    (result,) = measure.measure_all([str(tmp_path / "decoder")], measure.Workload(4, 3, 1), 1)
    assert 1 < result["first_s"] < 120  # of a process that imports torch
    assert 0.01 < result["token_ms"] < 500
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
def test_export_bench_refuses_what_it_cannot_measure(tmp_path, capsys, measured_by_a_script):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "export.json").write_text('{"to": "executorch"}')
    with pytest.raises(UserError, match="out: files of executorch are measured"):
        measure.find_kind(str(folder))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "export.json").write_text('{"to": "pt2"}')
    assert cli.main(["export-bench", str(tmp_path / "broken"), "--rounds", "1"]) == 2
    assert "broken: cannot be measured: no such runtime" in capsys.readouterr().err
    (folder / "export.json").write_text("[")
    with pytest.raises(UserError, match=r"export\.json: damaged"):
        measure.find_kind(str(folder))
    assert cli.main(["export-bench", str(folder), "--rounds", "0"]) == 2
    assert "rounds must be at least 1, not 0" in capsys.readouterr().err


@pytest.mark.catches("inputs_have_ids_beyond_the_vocabulary")
def test_ids_are_those_of_the_vocabulary():
    assert child.ids_below(5, 4) == [3, 0, 2, 4]
