"""Runs with an input of a plug-in: frames, for a classifier and as sources of seq2seq."""

import json
import os
import random
import sys

import pytest

import miniformer
from miniformer import TrainConfig, trainer
from miniformer.config import InputError
from miniformer.training.resume import verify
from tests.kit.plugins import registered

MODEL = {
    "d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 8, "dropout": 0.1,
    "input": {"type": "frames", "size": 4},
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def plugins():
    with registered():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Waves: four samples above or below 0 are a letter; the label says of which there are more."""
    path, draw = tmp_path_factory.mktemp("data") / "t.jsonl", random.Random(0)
    lines = []
    for _ in range(48):
        word = "".join(draw.choice("ab") for _ in range(draw.randint(1, 5)))
        wave = [[(c == "a") - 0.5 + draw.gauss(0, 0.1)] for c in word for _ in range(4)]
        lines.append({"source": wave, "target": word, "input": wave})
        lines[-1]["label"] = "high" if 2 * word.count("a") > len(word) else "low"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def settings(data, task, **changes):
    return {
        "train_path": str(data), "val_path": str(data), "task": task, "model_config": MODEL,
        "batch_size": 8, "precision": "float32", "accelerator": "cpu", "logger": "none",
        "lr": 1e-2, **changes,
    }  # fmt: skip


@pytest.mark.catches("inputs_are_cut_at_the_vectors_of_the_model")
def test_classifier_of_frames_learns_and_is_loaded(data, tmp_path):
    result = miniformer.train(
        max_steps=40, work_dir=str(tmp_path), quiet=True, wide_head="off",
        **settings(data, "classification"),
    )  # fmt: skip
    assert result.metrics["val_accuracy"] > 0.9
    model = miniformer.load(result.model)
    assert model.task.max_input_len == 32  # samples of eight frames
    assert model.model.config.input == MODEL["input"]
    wave = [[0.5]] * 4 + [[-0.5]] * 16  # longer than max_seq_len
    assert model.predict(wave)["label"] == "low"
    with pytest.raises(InputError, match="is 33 long; the model reads at most 32"):
        model.predict([[0.5]] * 33)


def test_seq2seq_of_frames_resumes_bit_for_bit_after_a_kill(data, tmp_path, monkeypatch):
    def forked(order):  # a fork has the plug-in
        child = os.fork()
        if child == 0:
            code = 1
            try:
                sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
                code = verify.run_child(order)
            finally:
                os._exit(code)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), ""

    monkeypatch.setattr(verify, "_run_subprocess", forked)
    config = TrainConfig(
        **settings(data, "seq2seq"), max_steps=6, val_check_interval=3, checkpoint_interval=2
    )
    report = verify.verify_resume(config, tmp_path, steps=6, kills=1, log=lambda line: None)
    assert report.bit_exact
    assert len(report.kills) == 1


def test_mistakes_in_an_input_are_one_message(data, tmp_path, capsys):
    for change, message in (
        ({"input": {"type": "framez"}}, "unknown input 'framez' (did you mean 'frames'?)"),
        ({"input": {"type": "frames", "sise": 4}}, "has no option 'sise' (did you mean 'size'?)"),
    ):
        flags = settings(data, "seq2seq", model_config={**MODEL, **change}, work_dir=str(tmp_path))
        arguments = [
            f"--{name}={json.dumps(value) if isinstance(value, dict) else value}"
            for name, value in flags.items()
        ]
        assert trainer.main(arguments) == 2
        error = " ".join(capsys.readouterr().err.split())
        assert message in error
        assert "Traceback" not in error
    too_long = settings(data, "classification", max_steps=1, work_dir=str(tmp_path), quiet=True)
    with pytest.raises(miniformer.UserError, match="max_input_len=33 makes more than 8 vectors"):
        miniformer.train(task_config={"max_input_len": 33}, **too_long)
