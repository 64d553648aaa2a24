"""Reading paths stay short: from the command line to an optimizer step, and to a token.

`python -m tests.contract.test_reading_paths train|generate FOLDER` prints a path, with `t.jsonl` of
the folder as training data.
"""

import contextlib
import json
import os
import sys

import pytest

from tests.kit import ROOT, run_python, write_jsonl

TRAIN_LANDMARKS = [
    "train_config.py:TrainConfig.cross_check",
    "training/resume/config.py:resolve_resume",
    "data/tokenizers/tokenizer.py:Tokenizer.train",
    "data/datamodule.py:MiniFormerDataModule.setup",
    "training/tuning/data_defaults.py:resolve_model_size",
    "model/transformer.py:Transformer.__init__",
    "training/setup/builders.py:make_trainer",
    "data/batching/packing.py:PackedBatcher.collate",
    "model/attention_backends/functions.py:sdpa",
    "model/ops/cross_entropy.py:linear_cross_entropy",
    "training/distributed/strategies.py:normalize_and_clip_grads",
    "training/optim/schedules.py:cosine",
    "training/optim/muon.py:Muon.step",
]
GENERATE_LANDMARKS = [
    "checkpoint/pipeline.py:load",
    "data/tokenizers/tokenizer.py:Tokenizer.encode_batch",
    "generation/inputs.py:check_prompts",
    "runtime/native/engine.py:Engine.run",
    "generation/sampling.py:sample_next_token",
    "generation/detokenizer.py:StreamingDetokenizer.add_token",
]
# Files and lines of functions; in the wide path, with the leaves.
LIMITS = {"train": (29, 2_000), "generate": (14, 900)}
WIDE_LIMITS = {"train": (66, 3_670), "generate": (32, 1_700)}


def trace(path, folder):
    """Runs the command of a path in `folder`; returns its `Tracer`."""
    import torch  # noqa: F401  imported before the trace

    import miniformer.cli
    import miniformer.trainer
    from tests.kit.reading_path import Tracer

    train = ["--train_path", "t.jsonl", "--max_steps", "2", "--logger", "none"]
    train += ["--model_config", '{"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 64}']
    train += ["--precision", "float32", "--accelerator", "cpu"]
    os.chdir(folder)
    with contextlib.redirect_stdout(sys.stderr):
        if path == "train":
            with Tracer(TRAIN_LANDMARKS, last=TRAIN_LANDMARKS[-1]) as tracer:
                miniformer.trainer.main(train)
            return tracer
        miniformer.trainer.main(train)
        with Tracer(GENERATE_LANDMARKS) as tracer:
            model = "runs/language_modeling/last"
            miniformer.cli.main(["generate", model, "the", "--max_new_tokens", "3"])
    return tracer


def test_run_is_read_on_three_screens():
    """`run.py` has the order of a run, and nothing else."""
    lines = (ROOT / "src/miniformer/training/run.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150


@pytest.mark.parametrize("name", LIMITS)
def test_reading_path_length(name, tmp_path):
    """A reader opens at most this many files, and reads at most this many lines of functions."""
    write_jsonl(tmp_path / "t.jsonl", ["the cat sat on the mat"] * 50)
    result = run_python("-m", "tests.contract.test_reading_paths", name, tmp_path, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    path, wide = json.loads(result.stdout)
    assert path["missed"] == []
    for counts, limits in ((path, LIMITS[name]), (wide, WIDE_LIMITS[name])):
        assert (counts["files"] <= limits[0], counts["lines"] <= limits[1]) == (True, True), counts[
            "text"
        ]


def test_reading_path_rule(tmp_path, monkeypatch):
    """Callers of the landmark and helpers in their files are on the path; leaves only if wide."""
    from tests.kit import reading_path

    for name, source in {
        "a.py": "from b import leaf, step\ndef main():\n    helper()\n    leaf()\n    step()\n"
        "def helper():\n    return [x for x in (1, 2)]\ndef unused():\n    pass\n",
        "b.py": "def leaf():\n    deeper()\ndef deeper():\n    pass\ndef step():\n    landmark()\n"
        "def landmark():\n    pass\n",
    }.items():
        (tmp_path / name).write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(reading_path, "SOURCE", tmp_path)
    import a

    with reading_path.Tracer(["b.py:landmark", "b.py:missing"]) as tracer:
        a.main()
    path = tracer.path()
    assert path.functions == {"a.py": {"main": 4, "helper": 2}, "b.py": {"step": 2, "landmark": 2}}
    assert (path.num_lines, path.missed) == (10, ["b.py:missing"])
    assert set(tracer.path(wide=True).functions["b.py"]) == {"leaf", "deeper", "step", "landmark"}
    for name in ("a", "b"):
        monkeypatch.delitem(sys.modules, name)


if __name__ == "__main__":
    tracer = trace(*sys.argv[1:])
    reports = [
        {"missed": path.missed, "files": len(path.functions), "lines": path.num_lines,
         "text": str(path)}
        for path in (tracer.path(), tracer.path(wide=True))
    ]  # fmt: skip
    print(json.dumps(reports))
