"""The example of docs/export.md: train, export, and translate in an environment without torch."""

import itertools
import re
import shlex
import subprocess
import sys

import miniformer
from miniformer import cli
from tests.kit import ROOT, VERSE, environment

TINY = shlex.split("--max_steps 30 --seq_len 32 --lr 0.003 --logger none")
TINY += ["--model_config", '{"d_model": 32, "n_heads": 2, "n_layers": 1}']


def run(*command, **options):
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, env=environment(), **options
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_runs(tmp_path, monkeypatch):
    text = (ROOT / "docs/export.md").read_text(encoding="utf-8")
    section = text[text.index("## A runner without torch") :]
    train, use = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)[:2]
    names = VERSE.split()
    lines = [
        f'{{"source": "{second} {first}", "target": "{first}"}}\n'
        for first, second in itertools.pairwise(names)
    ]
    monkeypatch.chdir(tmp_path)
    for name in ("train.jsonl", "val.jsonl"):
        (tmp_path / name).write_text("".join(lines * 4))
    for line in train.splitlines():
        flags = TINY if " train " in line else []
        assert cli.main([*shlex.split(line)[1:], *flags]) == 0
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    change, install, translate = use.splitlines()
    folder = tmp_path / shlex.split(change)[1]
    run(python, "-m", *shlex.split(install), cwd=folder)
    for name in ("torch", "miniformer"):
        code = f"import importlib.util as u; assert u.find_spec({name!r}) is None"
        run(python, "-E", "-c", code)
    translated = run(python, "-E", *shlex.split(translate)[1:], cwd=folder)
    pipeline = miniformer.load(tmp_path / "runs/seq2seq/best")
    source = shlex.split(translate)[3]
    expected = pipeline.generate(source, num_beams=5, num_return_sequences=3)
    assert translated.splitlines() == expected
