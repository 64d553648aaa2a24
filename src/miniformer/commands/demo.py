"""`miniformer demo`: trains a language model on the source of Python's standard library in minutes.

A hash of a module's name decides whether it is validation data, so the split is the same on every
machine.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import lzma
import math
import os
import shlex
import sysconfig
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from miniformer.config import UserError
from miniformer.config.command_line import python_command
from miniformer.train_config import TrainConfig
from miniformer.trainer import report_result
from miniformer.utils.atomic import write_text

if TYPE_CHECKING:
    from rich.console import Console

_VAL_MODULE_INTERVAL = 20  # one module in 20 is validation data
# Platform-specific, generated, or tests.
_EXCLUDED_DIRS = {
    *("__pycache__", "dist-packages", "encodings", "idlelib", "lib2to3", "pydoc_data"),
    *("site-packages", "test", "tests", "turtledemo"),
}
_MODEL_CONFIG = {
    "vocab_size": 2048,
    "d_model": 128,
    "n_heads": 4,
    "n_layers": 2,
    "max_seq_len": 256,
    "dropout": 0.0,
    "activation": "swiglu",
    "norm": "rmsnorm",  # with rmsnorm and without biases it can be exported as a Llama
    "bias": False,
}


DESCRIPTION = "Train a small language model on the source code of Python's standard library."


def add_arguments(parser: Any) -> None:
    """Adds the arguments."""
    parser.add_argument("--minutes", type=float, default=2.0, help="training time")
    parser.add_argument("--work_dir", type=str, default="runs", help="folder for the run")


def run(values: dict[str, Any]) -> int:
    """Writes the data, trains, and prints metrics; returns the exit code.

    Raises:
        UserError: see `train`; or this machine has no Python source.
    """
    minutes, work_dir = values["minutes"], values["work_dir"]
    if not 0.01 <= minutes <= 10_000:
        raise UserError(f"minutes must be from 0.01 to 10000, not {minutes}")
    from miniformer.training.run import train
    from miniformer.utils.streams import make_console  # imports take seconds

    console = make_console()
    texts = _read_modules(Path(sysconfig.get_paths()["stdlib"]))
    folder = _write_data(texts, Path(work_dir), console)
    config = TrainConfig(
        train_path=str(folder / "train.jsonl"),
        val_path=str(folder / "val.jsonl"),
        model_config=_MODEL_CONFIG,
        batch_size=8,
        seq_len=64,
        lr=5e-3,
        max_time=f"{round(minutes * 60, 2):g}s",
        work_dir=work_dir,
        experiment_name="demo",
    )
    console.print("\nthe same command line:\n" + _training_command(config) + "\n")
    result = train(config, console=console)
    code = report_result(result, console)
    if result.interrupted is None:
        _print_baselines(folder / "val.jsonl", result.metrics["val_bits_per_byte"], console)
        _print_completion(result.model, console)
    return code


def _read_modules(root: Path) -> dict[str, str]:
    """Text of each file; each line is a module of the standard library."""
    lines: dict[str, list[str]] = {"train.jsonl": [], "val.jsonl": []}
    for path in _find_modules(root):
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
        name = path.relative_to(root).as_posix()
        held_out = int(hashlib.sha256(name.encode()).hexdigest(), 16) % _VAL_MODULE_INTERVAL == 0
        record = json.dumps({"text": text, "file": name})
        lines["val.jsonl" if held_out else "train.jsonl"].append(record)
    if not all(lines.values()):
        raise UserError(f"no Python source found in {root}; train on a file of your own instead")
    return {name: "\n".join(records) + "\n" for name, records in lines.items()}


def _write_data(texts: dict[str, str], work_dir: Path, console: Console) -> Path:
    """Writes the files to `work_dir/demo-data`, or to the first free of `demo-data-2`, ...

    Existing equal files are reused; other files are not changed.
    """
    for number in itertools.count(1):
        folder = work_dir / ("demo-data" if number == 1 else f"demo-data-{number}")
        try:
            existing = {
                name: (folder / name).read_bytes() for name in texts if (folder / name).exists()
            }
            if any(existing[name] != texts[name].encode() for name in existing):
                console.print(f"{folder} has other files, which are not changed")
                continue
            folder.mkdir(parents=True, exist_ok=True)
            for name, text in texts.items():
                if name not in existing:
                    write_text(folder / name, text)
                verb = "reused" if name in existing else "wrote"
                size = f"{text.count(chr(10))} modules, {len(text) / 1e6:.2f} MB"
                console.print(f"{verb} {folder / name}: {size}")
        except OSError as error:
            raise UserError(f"work_dir: cannot write {folder}: {error.strerror}") from None
        console.print(f"first line: {texts['train.jsonl'][:88]}...")
        return folder
    raise AssertionError("there is always a free number")


def _find_modules(root: Path) -> list[Path]:
    paths = []
    for directory, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in _EXCLUDED_DIRS)
        paths += [Path(directory, name) for name in files if name.endswith(".py")]
    return sorted(paths)


def _training_command(config: TrainConfig) -> str:
    """Command line that trains the same model."""
    flags = [
        f"--{name} {shlex.quote(json.dumps(value) if isinstance(value, dict) else str(value))}"
        for name, value in config.non_default_fields().items()
    ]
    return " \\\n  ".join([f"{python_command()} -m miniformer.trainer", *flags])


def _print_baselines(val_path: Path, bits_per_byte: float, console: Console) -> None:
    """Prints bits per byte of the validation text: single bytes, xz and the model."""
    records = [json.loads(line) for line in val_path.read_text(encoding="utf-8").splitlines()]
    text = "".join(record["text"] for record in records).encode()
    counts = Counter(text)
    unigram = -sum(n / len(text) * math.log2(n / len(text)) for n in counts.values())
    xz = 8 * len(lzma.compress(text, preset=9)) / len(text)
    console.print("\nbits per byte of the validation modules (lower is better):")
    for name, value in (("single bytes", unigram), ("xz -9", xz), ("this model", bits_per_byte)):
        console.print(f"  {name:<14}{value:5.2f}  {'#' * round(value * 10)}")


def _print_completion(directory: Path, console: Console) -> None:
    from miniformer.checkpoint.pipeline import load

    prompt = "def "
    console.print(f"\ncontinuation of {prompt!r}:\n")
    text = load(directory).generate(prompt, max_new_tokens=80, temperature=0.7, top_p=0.95, seed=0)
    console.print(prompt + text)
