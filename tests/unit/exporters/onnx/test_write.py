"""`miniformer export --to onnx`: comparison, losses and messages."""

import json

import numpy as np
import pytest

from miniformer import UserError, cli, registry
from miniformer.checkpoint.pipeline import Pipeline
from miniformer.data.reading.records import as_records
from miniformer.evaluation.run_batches import BatchSettings, run_batches
from miniformer.exporters.onnx import write
from miniformer.exporters.verify import Comparison
from tests.kit import tiny_model
from tests.kit.exports import torch_model


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """Directory of a classifier of vectors, and a file of records."""
    folder = tmp_path_factory.mktemp("classifier")
    settings = {"classes": ["a", "b"], "input_kind": "features", "input_dim": 3}
    task = registry.get("task", "classification").from_dict(settings)
    model = tiny_model(causal=False, n_layers=1, input_dim=3, output_dim=2, pooling="last")
    Pipeline(model, None, task).save(folder / "model")
    random = np.random.default_rng(0)
    records = [
        {"input": random.normal(size=(length, 3)).tolist(), "label": "ab"[length % 2]}
        for length in range(1, 12)
    ]
    text = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "data.jsonl").write_text(text)
    return folder, model, task


@pytest.fixture
def rounded(monkeypatch):
    """The graphs that an export rounds; the model computes in place of onnxruntime."""
    calls = []
    monkeypatch.setattr(write, "write_graphs", lambda programs, folder: {"model": "model.onnx"})
    monkeypatch.setattr(write, "OnnxModel", lambda source, folder, files: torch_model(source))
    monkeypatch.setattr(write, "round_graph", lambda path, kind: calls.append((path.name, kind)))
    return calls


@pytest.mark.catches("graphs_are_not_compared")
def test_export_compares_and_keeps_the_loss(classifier, rounded, tmp_path, capsys):
    folder, model, task = classifier
    data, out = str(folder / "data.jsonl"), tmp_path / "out"
    flags = ["export", str(folder / "model"), str(out), "--to", "onnx", "--data", data]
    assert cli.main([*flags, "--weights", "int8_dynamic"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"written to {out}"
    for number, kind in ((1, "float32"), (3, "int8_dynamic")):
        assert lines[number].startswith(
            f"{kind}: compared with the model: the largest difference is "
        )
        assert float(lines[number].split()[-1]) < 1e-5
    about = json.loads((out / "export.json").read_text())
    records = as_records(data, task.schema)
    expected, _ = run_batches(model, task, None, records, BatchSettings())
    assert about["weights"] == "int8_dynamic"
    for kind in ("float32", "int8_dynamic"):
        assert about["losses"][kind] == pytest.approx(expected["loss"], abs=1e-5)
    assert rounded == [("model.onnx", "int8_dynamic")]


@pytest.mark.catches("graphs_that_differ_are_kept")
def test_graphs_that_differ_leave_nothing(classifier, rounded, tmp_path, monkeypatch):
    folder, _, _ = classifier
    monkeypatch.setattr(write, "compare", lambda *arguments: Comparison(0.002))
    with pytest.raises(
        UserError, match=r"differs from the model by 2\.0e-03, more than 1\.0e-03; n"
    ):
        write.export_onnx(folder / "model", str(tmp_path / "out"))
    assert not any(tmp_path.iterdir())
    with pytest.raises(UserError, match="differs from the model"):
        Comparison(float("nan")).check()
    with pytest.raises(UserError, match=r"other greedy tokens than the model \(1 of 3\)"):
        Comparison(0.0, 1.0, 3, 2).check()
    Comparison(5e-4, 9.0, 3, 3).check()  # rounding of large outputs
    text = write.export_onnx(folder / "model", str(tmp_path / "out"), verify=False)
    assert text.endswith("not compared with the model")


@pytest.mark.catches("bare_models_need_a_task")
def test_errors_of_options(classifier, tmp_path):
    folder, model, _ = classifier
    with pytest.raises(UserError, match=r"unknown weights 'int9' \(did you mean 'int8'\?\)"):
        write.export_onnx(folder / "model", str(tmp_path / "out"), weights="int9")
    model.save_pretrained(tmp_path / "bare")
    with pytest.raises(UserError, match="data: a loss on records needs a model directory with"):
        write.export_onnx(tmp_path / "bare", str(tmp_path / "out"), data="data.jsonl")
    assert not (tmp_path / "out").exists()
