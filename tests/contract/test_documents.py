"""Documentation: its examples run, and its links and paths exist."""

import re

import pytest

from miniformer.trainer import main
from tests.kit import ROOT, VERSE, run_python, write_jsonl


def blocks(document, language):
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("document", ["README.md", "docs/generation.md"])
def test_documents_python_examples_run_as_printed(tmp_path, document):
    """Runs all examples in order in one process, in a folder with a finished run."""
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


def test_documents_hugging_face_example_runs(tmp_path):
    import torch

    import miniformer
    from miniformer.config.architectures import architecture_config

    sizes = {
        "vocab_size": 40,
        "d_model": 16,
        "n_heads": 2,
        "n_layers": 1,
        "d_ff": 24,
        "dropout": 0.0,
    }
    torch.manual_seed(0)
    model = miniformer.Transformer(
        miniformer.TransformerConfig(**architecture_config("llama", **sizes))
    )
    miniformer.to_hf(model, tmp_path / "path/to/checkpoint")
    example = blocks("docs/huggingface.md", "python")[0]
    done = run_python("-c", example, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "exported" / "config.json").exists()
    ids, saved = torch.arange(8)[None], miniformer.load(tmp_path / "imported").model
    assert torch.equal(saved(ids), model.eval()(ids))


def test_readme_training_command_runs(tmp_path):
    (command,) = [b for b in blocks("README.md", "bash") if "--model_config" in b]
    text = re.sub(r"\\\n", " ", command)
    text = re.search(r"python -m miniformer\.trainer(.*)", text)[1]
    import shlex

    write_jsonl(tmp_path / "train.jsonl", [VERSE * 30])
    write_jsonl(tmp_path / "val.jsonl", [VERSE])
    done = run_python(
        "-m", "miniformer.trainer", *shlex.split(text), "--max_steps", "2", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "model: runs/" in done.stdout


def test_docstring_examples_run():
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


def heading_anchors(path):
    """Anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_links_and_paths_exist(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    base = (ROOT / document).parent
    for target, anchor in re.findall(r"\]\(([^)#:]*)#?([^):]*)\)", text):
        path = base / target if target else ROOT / document
        assert path.exists(), f"{document} points to {target}, which is not there"
        if anchor:
            assert anchor in heading_anchors(path), f"{document}: no heading {target}#{anchor}"


def test_documents_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    for document in ("README.md", "CONTRIBUTING.md"):
        for target in re.findall(r"`make (\w+)`", (ROOT / document).read_text()):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{document}: make {target}"
