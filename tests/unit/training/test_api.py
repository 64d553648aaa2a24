"""`miniformer.train` from keyword arguments and records in memory."""

import json
import re
import shutil

import pytest

import miniformer
from miniformer import TrainConfig, TransformerConfig, UserError
from miniformer.training import api
from miniformer.training.evaluate import RunResult
from tests.kit import run_python

ADJECTIVES = {"good": ["great", "fine"], "bad": ["dull", "poor"]}
RECORDS = [
    {"input": f"a {word} film number {n}", "label": label}
    for n in range(12)
    for label, adjectives in ADJECTIVES.items()
    for word in adjectives
]
SETTINGS = {
    "task": "classification", "logger": "none", "precision": "float32", "weight_decay": 0.1,
    "model_config": {"d_model": 16, "n_heads": 2, "n_layers": 1}, "tokenizer": "byte",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("api")
    return miniformer.train(
        RECORDS, val=RECORDS[:8], test=RECORDS[8:14], max_steps=4, quiet=True,
        work_dir=folder, **SETTINGS,
    )  # fmt: skip


@pytest.fixture
def config_of(monkeypatch):
    """Function that returns the config and the records with which `train` would train."""
    calls = []
    monkeypatch.setattr(api, "train_config", lambda config, **more: calls.append((config, more)))

    def call(*args, **kwargs):
        api.train(*args, **kwargs)
        return calls[-1]

    return call


@pytest.mark.catches("records_in_memory_are_others")
def test_train_on_records_equals_train_on_their_file(run, tmp_path):
    names = {"train_path": RECORDS, "val_path": RECORDS[:8], "test_path": RECORDS[8:14]}
    for name, records in names.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        names[name] = str(path)
    config = TrainConfig(max_steps=4, work_dir=str(tmp_path), **names, **SETTINGS)
    from_files = miniformer.train(config, console=miniformer.training.api.Console(quiet=True))
    ignored = {"seconds"}
    for name in run.metrics.keys() - ignored:
        assert run.metrics[name] == from_files.metrics[name], name
    first, second = (r.model / "model.safetensors" for r in (run, from_files))
    assert first.read_bytes() == second.read_bytes()


def test_train_result_has_pipeline_metrics_and_folder(run):
    assert run.pipeline is run.pipeline
    assert run.pipeline.directory == run.model == run.folder / "best"
    assert set(run.pipeline.predict(["a fine film"])[0]) == {"label", "score", "scores"}
    assert {"val_accuracy", "test_accuracy", "val_loss"} <= run.metrics.keys()
    expected = rf"RunResult\(model='{run.model}', val_accuracy=[\d.]+, .*test_loss=[\d.]+\)"
    assert re.fullmatch(expected, repr(run))


def test_run_result_of_an_interrupted_run_says_so(run):
    values = {**run.to_json(), "interrupted": 2}
    assert repr(RunResult.from_json(values)).endswith(", interrupted)")


@pytest.mark.catches("resume_takes_other_records")
def test_train_resumes_with_the_same_records_only(run, tmp_path):
    folder = shutil.copytree(run.folder, tmp_path / "run")
    with pytest.raises(UserError, match="train_path: the run had records in memory; pass the same"):
        miniformer.train(resume=folder, max_steps=5, quiet=True)
    with pytest.raises(UserError, match=r"val_path: the run had .* again, as its val, together"):
        miniformer.train(RECORDS, resume=folder, max_steps=5, quiet=True)
    parts = {"val": RECORDS[:8], "test": RECORDS[8:14], "resume": folder, "quiet": True}
    with pytest.raises(UserError, match=r"the data of .* has changed"):
        miniformer.train(RECORDS[1:], max_steps=5, **parts)
    assert miniformer.train(RECORDS, max_steps=5, **parts).metrics["step"] <= 5


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ([RECORDS], {"lrr": 1}, "train: unknown field 'lrr' (did you mean 'lr'?)"),
        ([RECORDS], {"lr": "x"}, "train: lr must be a number or null, not 'x'"),
        ([], {}, "train_path is missing"),
        (["a.csv"], {"train_path": "b"}, "the first argument and train_path are both given"),
        ([RECORDS], {"val": "a", "val_path": "b"}, "val and val_path are both given"),
        ([TrainConfig(train_path="a")], {"lr": 1.0}, "set lr in the TrainConfig"),
        ([TrainConfig(train_path="a")], {"val": "v"}, "set val in the TrainConfig"),
        ([RECORDS], {"streaming": True, "max_steps": 1}, "streaming reads files, not records"),
    ],
)
def test_train_refuses(config_of, arguments, settings, message):
    with pytest.raises(UserError, match=re.escape(message)):
        config_of(*arguments, **settings)


def test_train_settings_are_those_of_the_config(config_of, tmp_path):
    config, more = config_of(
        tmp_path / "a.csv", val=["v.csv", tmp_path], lr=0.1, batch_size=None, weight_decay=0.1,
        model_config=TransformerConfig(d_model=32),
    )  # fmt: skip
    assert config.train_path == str(tmp_path / "a.csv")
    assert config.val_path == ["v.csv", str(tmp_path)]
    assert (config.model_config, config.lr) == ({"d_model": 32}, 0.1)
    assert more["records"] == {}
    given = ["lr", "model_config", "train_path", "val_path", "weight_decay"]
    assert sorted(config.given_fields()) == given
    config, more = config_of(RECORDS, test=RECORDS[:1])
    assert more["records"] == {"train_path": RECORDS, "test_path": RECORDS[:1]}
    config = TrainConfig(train_path="a")
    assert config_of(config)[0] is config


def test_train_in_a_script_needs_no_main_guard(tmp_path):
    """On one device nothing is imported again; `import miniformer` imports no torch."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, miniformer\n"
        "assert 'torch' not in sys.modules\n"
        f"run = miniformer.train({RECORDS[:8]!r}, max_steps=1, quiet=True, **{SETTINGS!r})\n"
        "print(run.folder)\n"
    )
    done = run_python(script, cwd=tmp_path)
    assert (done.stdout, done.returncode) == ("runs/classification\n", 0), done.stderr
