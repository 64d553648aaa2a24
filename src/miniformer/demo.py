"""The demo: a language model of Python, trained on the standard library's own source, in minutes.

The text is real, large, and on every machine that runs Python. Validation is on whole modules that
were never trained on, chosen by a hash of their names, so the split is the same everywhere.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import math
import os
import sysconfig
from collections import Counter
from pathlib import Path

from rich.console import Console

from miniformer.checkpoint.pipeline import load
from miniformer.config import UserError
from miniformer.train_config import TrainConfig
from miniformer.trainer import tell
from miniformer.training.progress import make_console
from miniformer.training.run import train

_HELD_OUT = 32  # one module in so many is held out
# Not everywhere, not written by hand, or tests.
_SKIPPED = {
    *("__pycache__", "dist-packages", "encodings", "idlelib", "lib2to3", "pydoc_data"),
    *("site-packages", "test", "tests", "turtledemo"),
}
_MODEL = {
    "vocab_size": 2048,
    "d_model": 128,
    "n_heads": 4,
    "n_layers": 2,
    "max_seq_len": 256,
    "dropout": 0.0,
    "activation": "swiglu",
}


def run_demo(*, minutes: float, work_dir: str) -> int:
    """Writes the data, trains, and tells how good the model is; returns the exit code.

    Args:
        minutes: training time.
        work_dir: folder for data and run.
    """
    console = make_console()
    folder = Path(work_dir) / "demo-data"
    train_path, val_path = _write_data(folder, console)
    config = TrainConfig(
        train_path=str(train_path),
        val_path=str(val_path),
        model_config=_MODEL,
        batch_size=8,
        seq_len=64,
        lr=5e-3,
        max_time=f"{round(minutes * 60)}s",
        work_dir=work_dir,
        experiment_name="demo",
    )
    console.print("\nthe same, by hand:\n" + _command(config) + "\n")
    result = train(config, console=console)
    code = tell(result, console)
    if result.interrupted is None:
        _compare(val_path, result.figures["val_bits_per_byte"], console)
        _complete(result.model, console)
    return code


def _write_data(folder: Path, console: Console) -> tuple[Path, Path]:
    """Writes train.jsonl and val.jsonl, one module of the standard library a line."""
    root = Path(sysconfig.get_paths()["stdlib"])
    lines: dict[str, list[str]] = {"train": [], "val": []}
    for path in _modules(root):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        name = path.relative_to(root).as_posix()
        held_out = int(hashlib.sha256(name.encode()).hexdigest(), 16) % _HELD_OUT == 0
        lines["val" if held_out else "train"].append(json.dumps({"text": text, "file": name}))
    if not (lines["train"] and lines["val"]):
        raise UserError(
            f"no Python source was found in {root}; train on a file of your own instead"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for split, some in lines.items():
        path = folder / f"{split}.jsonl"
        text = "\n".join(some) + "\n"
        verb = "wrote" if not path.exists() else "kept"
        if verb == "kept" and path.read_text(encoding="utf-8") != text:
            verb = "replaced, because this Python's source differs from the one before,"
        if verb != "kept":
            path.write_text(text, encoding="utf-8")
        console.print(f"{verb} {path}: {len(some)} modules, {len(text) / 1e6:.2f} MB")
    console.print(f"its first line: {lines['train'][0][:88]}...")
    return folder / "train.jsonl", folder / "val.jsonl"


def _modules(root: Path) -> list[Path]:
    found = []
    for directory, below, files in os.walk(root):
        below[:] = sorted(name for name in below if name not in _SKIPPED)
        found += [Path(directory, name) for name in files if name.endswith(".py")]
    return sorted(found)


def _command(config: TrainConfig) -> str:
    """The command line that trains the same model."""
    flags = {
        name: value
        for name, value in config.to_dict().items()
        if value != getattr(TrainConfig(train_path="-"), name)
    }
    words = [
        f"--{name} '{json.dumps(value)}'" if isinstance(value, dict) else f"--{name} {value}"
        for name, value in flags.items()
    ]
    return " \\\n  ".join(["python -m miniformer.trainer", *words])


def _compare(val_path: Path, bits: float, console: Console) -> None:
    """Sets the model's bits per byte beside what others need for the same held-out text."""
    records = [json.loads(line) for line in val_path.read_text(encoding="utf-8").splitlines()]
    text = "".join(record["text"] for record in records).encode()
    counts = Counter(text)
    unigram = -sum(n / len(text) * math.log2(n / len(text)) for n in counts.values())
    xz = 8 * len(lzma.compress(text, preset=9)) / len(text)
    console.print("\nbits per byte of the held-out modules (lower is better):")
    for name, value in (("single bytes", unigram), ("xz -9", xz), ("this model", bits)):
        console.print(f"  {name:<14}{value:5.2f}  {'#' * round(value * 10)}")


def _complete(directory: Path, console: Console) -> None:
    prompt = "def "
    console.print(f"\nwhat it writes after {prompt!r}:\n")
    text = load(directory).generate(prompt, max_new_tokens=80, temperature=0.7, top_p=0.95, seed=0)
    console.print(prompt + text)
