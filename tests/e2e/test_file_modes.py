"""Permissions of all written files follow the umask."""

import os

import pytest

import miniformer
from miniformer import trainer
from miniformer.interop.hf.api import import_hf
from miniformer.interop.hf.export import to_hf
from tests.kit import write_jsonl

MODEL = (
    '{"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 32, "norm": "rmsnorm", '
    '"bias": false, "activation": "swiglu"}'
)


@pytest.mark.catches("commit_keeps_private_mode")
def test_every_written_file_respects_umask(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "train.jsonl", ["a b c d e f g h " * 8] * 4)
    source = set(tmp_path.rglob("*"))
    before = os.umask(0o027)
    try:
        flags = ["--train_path", "train.jsonl", "--val_path", "train.jsonl", "--max_steps", "3"]
        flags += ["--tokenizer", "byte", "--model_config", MODEL, "--experiment_name", "run"]
        assert trainer.main([*flags, "--val_check_interval", "1", "--find_lr", "true"]) == 0
        pipeline = miniformer.load("runs/run/best")
        pipeline.save("saved")
        to_hf(pipeline, "exported")
        import_hf("exported", "imported")
    finally:
        os.umask(before)
    written = sorted(set(tmp_path.rglob("*")) - source)
    names = {path.name for path in written}
    assert {"model.safetensors", "state.safetensors", "config.json", "lr.png", "report.html"} < (
        names
    )
    wrong = {
        str(path.relative_to(tmp_path)): oct(path.stat().st_mode & 0o777)
        for path in written
        if path.stat().st_mode & 0o777 != (0o750 if path.is_dir() else 0o640)
    }
    assert wrong == {}
    assert not [name for name in names if name.endswith(".part")]
