"""What the documents say is run: an example that no longer works fails here."""

import json
import math
import re
import runpy

import pytest
import yaml

from miniformer.train_config import TrainConfig
from miniformer.trainer import main
from tests.kit import ROOT, VERSE, run_python, write_jsonl


def blocks(document, language):
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("document", ["README.md", "docs/generation.md"])
def test_the_python_examples_run_as_printed(tmp_path, document):
    """One after another in one process, as a reader would type them, beside a finished run."""
    train = write_jsonl(tmp_path / "train.jsonl", [VERSE])
    assert main([
        "--train_path", str(train), "--tokenizer", "byte", "--max_steps", "1", "--logger", "none",
        "--model_config", '{"d_model": 16, "n_heads": 2, "n_layers": 1}', "--seq_len", "16",
        "--work_dir", str(tmp_path / "runs"),
    ]) == 0  # fmt: skip
    examples = blocks(document, "python")
    assert len(examples) >= 2
    code = "\n".join(examples).replace(
        "runs/demo/best", str(tmp_path / "runs/language_modeling/last")
    )
    done = run_python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_python_example_of_hugging_faces_files_runs(tmp_path):
    import torch

    import miniformer
    from miniformer.config.families import family

    sizes = {
        "vocab_size": 40,
        "d_model": 16,
        "n_heads": 2,
        "n_layers": 1,
        "d_ff": 24,
        "dropout": 0.0,
    }
    torch.manual_seed(0)
    model = miniformer.Transformer(miniformer.TransformerConfig(**family("llama", **sizes)))
    miniformer.to_hf(model, tmp_path / "path/to/checkpoint")
    example = blocks("docs/huggingface.md", "python")[0]
    done = run_python("-c", example, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "home" / "config.json").exists()
    ids, saved = torch.arange(8)[None], miniformer.load(tmp_path / "ours").model
    assert torch.equal(saved(ids), model.eval()(ids))


def test_the_training_command_of_the_readme_runs(tmp_path):
    (command,) = [b for b in blocks("README.md", "bash") if "--model_config" in b]
    words = re.sub(r"\\\n", " ", command)
    words = re.search(r"python -m miniformer\.trainer(.*)", words)[1]
    import shlex

    write_jsonl(tmp_path / "train.jsonl", [VERSE * 30])
    write_jsonl(tmp_path / "val.jsonl", [VERSE])
    done = run_python(
        "-m", "miniformer.trainer", *shlex.split(words), "--max_steps", "2", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "model: runs/" in done.stdout


def test_the_examples_in_docstrings_run():
    import doctest

    import torch

    from miniformer.model import transformer

    results = doctest.testmod(transformer, extraglobs={"torch": torch})
    assert results.attempted >= 2
    assert results.failed == 0


DOCUMENTS = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/**/*.md")
    for path in ROOT.glob(pattern)
)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_paths_of_the_documents_exist(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    base = (ROOT / document).parent
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (base / target).exists(), f"{document} points to {target}, which is not there"


def test_make_targets_named_in_the_documents_exist():
    makefile = (ROOT / "Makefile").read_text()
    for document in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"`make (\w+)`", (ROOT / document).read_text()):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{document}: make {target}"


def test_recipes_are_settings_and_their_page_shows_each():
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    recipes = list((ROOT / "recipes").glob("*.yaml"))
    assert recipes
    for path in recipes:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        paths = {"train_path": "train.jsonl", "val_path": "val.jsonl"}
        TrainConfig.from_dict({**settings, **paths})
        assert f"| [{path.stem}](../recipes/{path.name}) |" in page


def test_figures_of_text_do_not_depend_on_its_tokens(tmp_path):
    """Where one window holds all of val, a word's nats are those of its bytes together."""
    quality = runpy.run_path(str(ROOT / "benchmarks" / "quality.py"))
    text = "to be or not to be\nthat is the question"
    path = tmp_path / "val.txt"
    path.write_text(text)
    model = {"d_model": 16, "n_heads": 2, "n_layers": 1, "max_seq_len": 64}
    paths = {"train_path": str(path), "val_path": str(path)}
    settings = {"task": "language_modeling", "tokenizer": "byte", "model_config": model, "seed": 0}
    found = quality["run"]({**settings, **paths, "max_steps": 2, "logger": "none"})
    nats = found["val_nats_per_byte"]
    assert nats == pytest.approx(found["val_bits_per_byte"] * math.log(2))
    per_word = nats * len(text) / (len(text.split()) + 1)
    # A validation also predicts the end, the 40th token.
    assert math.log(found["val_word_perplexity"]) == pytest.approx(per_word, rel=0.03)


def test_recipes_say_what_was_measured():
    quality = runpy.run_path(str(ROOT / "benchmarks" / "quality.py"))
    entries = json.loads(quality["RESULTS"].read_text(encoding="utf-8"))
    assert quality["PAGE"].read_text(encoding="utf-8") == quality["page"](entries)
    means = {
        each["recipe"]: each["mean"] for each in entries if not (each["defaults"] or each["change"])
    }
    for path in (ROOT / "recipes").glob("*.yaml"):
        mean = means[path.stem]
        written = [f"{mean:.1f}"] if mean > 10 else [f"{mean:.3f}", f"{mean:.2f}"]
        head = path.read_text(encoding="utf-8").partition("task:")[0]
        assert any(re.search(rf"(?<![\d.]){each}(?!\d)", head) for each in written), path.name
