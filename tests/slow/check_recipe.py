"""A recipe reaches its metric, from the command line to the metric of `best`.

The text is Python's own source, which is on every machine. The thresholds are far from the results
of a correct run, and far from those of a model of byte frequencies.
"""

import json
import math
import sysconfig
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from tests.kit import run_python

MODULES = [
    "argparse", "ast", "configparser", "csv", "dataclasses", "datetime", "decimal", "dis",
    "doctest", "inspect", "locale", "optparse", "pathlib", "pickle", "random", "shutil", "socket",
    "statistics", "subprocess", "tarfile", "threading", "typing", "uuid", "zipfile",
]  # fmt: skip
STEPS = 400
MODEL = {"d_model": 128, "n_heads": 4, "n_layers": 3, "max_seq_len": 128, "dropout": 0.0,
         "norm": "rmsnorm", "bias": False, "activation": "relu"}  # fmt: skip


def texts():
    """Training and validation text; the last modules are held out."""
    library = Path(sysconfig.get_path("stdlib"))
    candidates = [(library / f"{name}.py", library / name / "__init__.py") for name in MODULES]
    read = [
        next(path for path in paths if path.exists()).read_text("utf-8") for paths in candidates
    ]
    ascii_only = ["".join(letter for letter in text if letter.isascii()) for text in read]
    return "".join(ascii_only[:-3]), "".join(ascii_only[-3:])


def pair_entropy(train, val):
    """Bits per byte of a bigram model of bytes."""
    pairs, before = Counter(pairwise(train)), Counter(train[:-1])
    total = -sum(math.log2((pairs[a, b] + 0.1) / (before[a] + 0.1 * 128)) for a, b in pairwise(val))
    return total / (len(val) - 1)


@pytest.mark.timeout(1800)
def test_language_model_of_source_beats_a_bigram_model(tmp_path):
    train, val = texts()
    (tmp_path / "train.txt").write_text(train)
    (tmp_path / "val.txt").write_text(val[:60_000])
    flags = {
        "train_path": "train.txt", "val_path": "val.txt", "task": "language_modeling",
        "tokenizer": "char", "seq_len": 128, "batch_size": 12, "lr": 0.012, "scheduler": "linear",
        "precision": "float32", "max_steps": STEPS, "val_check_interval": 100, "seed": 0,
        "model_config": json.dumps(MODEL), "logger": "none", "work_dir": "runs",
        "experiment_name": "recipe",
    }  # fmt: skip
    args = [word for name, value in flags.items() for word in (f"--{name}", value)]
    done = run_python("-m", "miniformer.cli", "train", *args, cwd=tmp_path, timeout=1700)
    assert done.returncode == 0, done.stderr
    rows = [
        json.loads(line)
        for line in (tmp_path / "runs" / "recipe" / "metrics.jsonl").read_text().splitlines()
    ]
    bits = {row["step"]: row["val_bits_per_byte"] for row in rows if "val_loss" in row}
    assert list(bits) == [100, 200, 300, 400]
    pairs = pair_entropy(train, val[:60_000])
    print(f"bits a byte: {bits}, of pairs {pairs:.3f}")
    assert bits[400] < bits[300] < bits[200] < bits[100]
    assert bits[400] < 0.75 * pairs
