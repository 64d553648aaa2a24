"""Recipes are valid settings and state their committed results."""

import json
import math
import re
import runpy
import types

import pytest
import yaml

from miniformer import TransformerConfig
from miniformer.train_config import TrainConfig
from miniformer.trainer import train_parser
from miniformer.training.setup.prepare import build_task
from tests.kit import ROOT

NOT_BETTER = {"sst2"}  # than a simple method
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


@pytest.fixture
def quality(monkeypatch):
    """Names that benchmarks/quality.py and quality_page.py define."""
    folder = ROOT / "benchmarks"
    monkeypatch.syspath_prepend(folder)
    return {**runpy.run_path(folder / "quality.py"), **runpy.run_path(folder / "quality_page.py")}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_files_are_valid_settings(path, quality):
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    config = TrainConfig.from_dict({**settings, "train_path": "train.jsonl", "val_path": "v.jsonl"})
    task = build_task(config, "seq2seq" if config.task == "seq2seq" else "encoder")
    assert (config.checkpoint_metric or "loss") in task.metrics
    TransformerConfig.from_dict(config.model_config)
    assert path.stem in quality["facts"]()


def test_recipe_override_with_a_dot_changes_one_setting():
    recipe = ROOT / "recipes" / "sst2.yaml"
    settings = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    more = ["--config", str(recipe), "--train_path", "t.jsonl", "--model_config.max_seq_len", "512"]
    overridden = train_parser().parse_args(more).as_dict()
    assert overridden["model_config"] == {**settings["model_config"], "max_seq_len": 512}
    assert overridden["max_epochs"] == settings["max_epochs"]


def test_text_metrics_do_not_depend_on_the_tokenizer(quality, tmp_path):
    """If one window holds all of val, the nats of a word are the sum of those of its bytes."""
    text = "to be or not to be\nthat is the question"
    path = tmp_path / "val.txt"
    path.write_text(text)
    model = {"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 64}
    paths = {"train_path": str(path), "val_path": str(path)}
    settings = {"task": "language_modeling", "tokenizer": "byte", "model_config": model, "seed": 0}
    result = quality["run"]({**settings, **paths, "max_steps": 2, "logger": "none"})
    nats = result["val_nats_per_byte"]
    assert nats == pytest.approx(result["val_bits_per_byte"] * math.log(2))
    per_word = nats * len(text) / (len(text.split()) + 1)
    # A validation also predicts the end, the 40th token.
    assert math.log(result["val_word_perplexity"]) == pytest.approx(per_word, rel=0.03)


def test_beam_search_gain_is_measured_on_all_of_val(quality, tmp_path, monkeypatch):
    path = tmp_path / "val.jsonl"
    path.write_text(
        "".join(json.dumps({"source": f"{n}", "target": f"{n}"}) + "\n" for n in "abcd")
    )

    class Model:
        def predict(self, inputs, num_beams):
            return inputs if num_beams == 5 else [*inputs[:3], "x"]

    beam_metrics = quality["beam_metrics"]
    monkeypatch.setitem(beam_metrics.__globals__, "load", lambda path: Model())
    settings = {"val_path": str(path), "task_config": {"num_beams": 5}}
    result = beam_metrics(settings, types.SimpleNamespace(model=None))
    assert (result["val_greedy_exact_match"], result["val_beams_exact_match"]) == (0.75, 1.0)
    assert beam_metrics({**settings, "task_config": {}}, None) == {}
    entry = {
        "recipe": "scan", "defaults": False, "change": {}, "machine": "1 of 2 cores, x",
        "metric": "exact_match", "settings": {}, "runs": [result, {"val_exact_match": 0.5}],
    }  # fmt: skip
    cells = "1 (one run) | 0.75 (one run)"
    row = f'| scan | exact match | `{{"task_config": {{"num_beams": 1}}}}` | {cells} |'
    assert quality["ablations"]([entry]).splitlines()[-1] == row
    del entry["runs"][0]
    assert quality["ablations"]([entry]) == ""


def test_trial_runs_never_use_test_data(quality, tmp_path):
    for name in ("train", "val", "test"):
        (tmp_path / f"{name}.jsonl").write_text("")
    options = {"seed": 3, "defaults": False}
    full_run = quality["settings_of"]("sst2", tmp_path, **options, change={})
    assert full_run["test_path"] == str(tmp_path / "test.jsonl")
    change = {"model_config": {"dropout": 0.1}, "ema_decay": None}
    tried = quality["settings_of"]("sst2", tmp_path, **options, change=change)
    assert tried.keys() == full_run.keys() - {"test_path", "ema_decay"}
    assert tried["model_config"] == {**full_run["model_config"], "dropout": 0.1}
    plain = quality["settings_of"]("sst2", tmp_path, seed=3, defaults=True, change={})
    assert set(plain) - {"train_path", "val_path", "test_path"} == {
        "task", "seed", "logger", "experiment_name",
    }  # fmt: skip


def test_recipes_page_metric_has_a_spread_or_is_marked_as_one_run(quality):
    assert quality["mean_and_spread"]({"mean": 0.87654, "spread": 0.01234}) == "0.8765 ± 0.0123"
    assert quality["mean_and_spread"]({"mean": 0.5, "spread": None}) == "0.5 (one run)"


# The tests below compare committed files. They fail if one of the files changes without the others.
# They do not measure the code: `make slow` trains a recipe.


def test_recipes_page_is_that_of_the_committed_results(quality):
    entries = json.loads(quality["RESULTS"].read_text(encoding="utf-8"))
    assert quality["PAGE"].read_text(encoding="utf-8") == quality["page"](entries)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_header_repeats_its_committed_result(path, quality):
    entries = json.loads(quality["RESULTS"].read_text(encoding="utf-8"))
    entry = quality["latest"](entries)[path.stem, False, None]
    assert entry["settings"] == yaml.safe_load(path.read_text(encoding="utf-8"))
    head = path.read_text(encoding="utf-8").partition("task:")[0]
    mean, millions = entry["mean"], entry["parameters"] / 1e6
    written = [f"{mean:.1f}"] if mean > 10 else [f"{mean:.3f}", f"{mean:.2f}"]
    assert any(re.search(rf"(?<![\d.]){number}(?!\d)", head) for number in written)
    size = re.search(r"([\d.]+)(?:\s|#)+million(?:\s|#)+parameters", head)
    assert float(size[1]) == pytest.approx(millions, abs=0.05)


def test_committed_results_beat_simple_baselines(quality):
    """Defaults are within a tenth of the recipe. Exceptions are listed and stated on the page."""
    about, not_better = quality["facts"](), set()
    entries = quality["latest"](json.loads(quality["RESULTS"].read_text(encoding="utf-8")))
    for (recipe, defaults, gpu), entry in entries.items():
        sign = -1 if entry["metric"] in ("rmse", "word_perplexity", "nats_per_byte") else 1
        for value in about[recipe].get("simple", {}).values():
            if not sign * entry["mean"] > sign * value:
                not_better.add(recipe)
        if defaults:
            ratio = entry["mean"] / entries[recipe, False, gpu]["mean"]
            assert ratio**sign > 0.9, recipe
    assert not_better == NOT_BETTER
    assert all("limits" in about[recipe] for recipe in NOT_BETTER)
