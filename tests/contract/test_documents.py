"""Documentation: its examples run, and its links and paths exist."""

import dataclasses
import json
import re
import shlex

import pytest

from miniformer import GenerationConfig, TrainConfig, cli, registry, trainer
from miniformer.doctor import __main__ as doctor
from miniformer.trainer import main
from tests.kit import ROOT, VERSE, run_python, write_jsonl


def blocks(document, language):
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("document", ["README.md", "docs/generation.md", "docs/data.md"])
def test_documents_python_examples_run_as_printed(tmp_path, document):
    """Runs all examples in order in one process, in a folder with a finished run."""
    train = write_jsonl(tmp_path / "train.jsonl", [VERSE])
    assert main([
        "--train_path", str(train), "--tokenizer", "byte", "--max_steps", "1", "--logger", "none",
        "--model_config", '{"d_model": 16, "n_heads": 2, "n_layers": 1}', "--seq_len", "16",
        "--work_dir", str(tmp_path / "runs"),
    ]) == 0  # fmt: skip
    write_tickets(tmp_path)
    examples = blocks(document, "python")
    assert len(examples) >= 2
    code = "\n".join(examples).replace(
        "runs/demo/best", str(tmp_path / "runs/language_modeling/last")
    )
    done = run_python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def write_tickets(folder):
    """The files of README's first ten minutes."""
    nouns = {"card": ["blocked", "stolen", "lost"], "money": ["refund", "fee", "price"]}
    rows = [
        f'{number},"my {word} {category}, please help {number}",{category}'
        for number in range(8)
        for category, items in nouns.items()
        for word in items
    ]
    for name, part in (("tickets.csv", rows[:36]), ("later.csv", rows[36:])):
        lines = ["id,text,category", *part]
        (folder / name).write_text("".join(f"{line}\n" for line in lines))


def test_readme_first_commands_run(tmp_path, monkeypatch, capsys):
    """The commands of the first ten minutes, in order, as printed."""
    write_tickets(tmp_path)
    monkeypatch.chdir(tmp_path)
    (block,) = [block for block in blocks("README.md", "bash") if "tickets.csv" in block]
    outputs = []
    for line in block.splitlines():
        arguments = shlex.split(line, comments=True)
        assert arguments.pop(0) == "miniformer"
        assert cli.main(arguments) == 0, line
        outputs.append(capsys.readouterr().out)
    assert outputs[0].startswith("train: 36 valid records")
    assert [json.loads(text)["label"] for text in outputs[3].splitlines()]


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


def test_python_page_examples_run_in_order(tmp_path):
    """Training from Python, in memory, in an own Lightning script, and in a plain loop."""
    examples = blocks("docs/python.md", "python")
    assert len(examples) == 11
    done = run_python("-c", "\n".join(examples), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "RunResult(model='runs/classification/best', val_accuracy=" in done.stdout
    assert "CrossValidationResult(folder='runs/classification-2', folds=2, val_" in done.stdout
    assert "InMemoryResult(steps=3, train_loss=" in done.stdout
    assert (tmp_path / "film-opinions" / "task.json").exists()


def test_readme_training_command_runs(tmp_path):
    (command,) = [b for b in blocks("README.md", "bash") if "--model_config" in b]
    text = re.sub(r"\\\n", " ", command)
    text = re.search(r"python -m miniformer\.trainer(.*)", text)[1]

    write_jsonl(tmp_path / "train.jsonl", [VERSE * 30])
    write_jsonl(tmp_path / "val.jsonl", [VERSE])
    done = run_python(
        "-m", "miniformer.trainer", *shlex.split(text), "--max_steps", "2", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "model: runs/" in done.stdout


def commands(document):
    """Commands in the code blocks of a page: `train`, `doctor` or `cli`, and the arguments."""
    text = (ROOT / document).read_text(encoding="utf-8")
    lines = [line for block in blocks(document, "bash") for line in joined(block)]
    lines += joined(
        "\n".join(re.findall(r"^    (.+)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M))
    )
    for line in lines:
        match = re.search(r"(?:^|-m )miniformer(?:\.(trainer|doctor)|(?= )) (.*)", line)
        if match:
            arguments = shlex.split(match[2].replace("...", "--train_path t.jsonl"), comments=True)
            yield match[1] or "cli", arguments


def joined(text):
    return re.sub(r"\\\n\s*", "", text).splitlines()


def test_documents_commands_have_known_arguments(monkeypatch):
    """Every command of the pages is parsed; training and generation settings are checked."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(trainer, "run", accept_training)
    monkeypatch.setattr(doctor, "run", lambda values: 0)
    monkeypatch.setattr(cli, "_run", lambda command, values: accept_command(values))
    entry_points = {"trainer": trainer.main, "doctor": doctor.main, "cli": cli.main}
    pages = [page for page in DOCUMENTS if "/adr/" not in page]
    examples = [(page, *command) for page in pages for command in commands(page)]
    failed = [item for item in examples if entry_points[item[1]](item[2]) != 0]
    assert len(examples) >= 19
    assert failed == []
    assert cli.main(["generate", "runs/demo/best", "def ", "--temprature", "0.7"]) != 0


def test_training_page_flags_are_known(monkeypatch):
    """Flags with values that the text of the page names, and the keys of their objects."""
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    spans = re.findall(r"`(--\w[^`]*)`", text.replace("\n", " "))
    spans = [
        span for span in spans if " " in span and not re.search(r"[.<]{3}|<|max_restarts", span)
    ]
    values = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(trainer, "run", lambda given: values.append(given) or 0)
    assert len(spans) >= 20
    assert [span for span in spans if main(shlex.split(span)) != 0] == []
    options = {
        field.name
        for name in registry.builtin_names("task")
        for field in dataclasses.fields(registry.get("task", name))
    }
    named = {name for given in values for name in given.get("task_config", {})}
    assert len(named) >= 5
    assert named <= options
    assert main(["--leraning_rate", "1"]) != 0


def accept_training(values):
    TrainConfig.from_dict({"train_path": "t.jsonl", **values})
    return 0


def accept_command(values):
    name = values["command"]
    settings = {key: value for key, value in values[name].items() if key not in NOT_SETTINGS}
    if name in ("train", "verify-resume"):
        accept_training(settings)
    if name == "generate":
        GenerationConfig.from_dict(settings)
    return 0


# Arguments of commands that are no fields of a config.
NOT_SETTINGS = ("config", "steps", "kills", "directory", "prompts", "draft", "truncate")


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
