"""Shared helpers of all tests: tiny models, tiny files, and child processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from miniformer.config import TransformerConfig
from miniformer.model.transformer import Transformer

ROOT = Path(__file__).resolve().parents[2]

VERSE = (
    "The cat sat on the mat, and the dog sat by the door.\n"
    "Nobody knew why the bird sang; it sang all the same.\n"
)


def tiny_config(**changes):
    """A config with which a forward pass takes a millisecond."""
    fields = {
        "vocab_size": 31,
        "d_model": 16,
        "n_heads": 4,
        "n_layers": 2,
        "max_seq_len": 32,
        "dropout": 0.0,
        "causal": True,
    }
    return TransformerConfig(**{**fields, **changes})


def tiny_model(seed=0, model=Transformer, **changes):
    """A model in eval mode with random weights, biases and norms too."""
    torch.manual_seed(seed)
    instance = model(tiny_config(**changes)).eval()
    with torch.no_grad():
        for parameter in instance.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return instance


def filled(config):
    """Fields of a config for the reference, with every null replaced by its default."""
    return {
        **config.to_dict(),
        "head_dim": config.head_dim or config.d_model // config.n_heads,
        "n_kv_heads": config.n_kv_heads or config.n_heads,
        "norm_placement": config.norm_placement or ("pre" if config.pre_norm else "post"),
        "n_decoder_layers": config.n_decoder_layers or config.n_layers,
    }


def write_jsonl(path, texts):
    """Writes one {"text": ...} record a line."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def a_series(random, count=40):
    """Inputs of three features, the middle one a random walk, and its next value."""
    series = [random.normal(5, 2, (random.integers(3, 6), 3)) for _ in range(count)]
    for vectors in series:
        vectors[:, 1] = 10 * random.normal() + np.cumsum(vectors[:, 1] - 5)
    values = [float(vectors[-1, 1] + random.normal(0, 2)) for vectors in series]
    return [{"input": x.tolist(), "value": y} for x, y in zip(series, values, strict=True)]


def environment():
    """Environment for a child process, with one thread, since tests run in parallel."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def run_python(*arguments, timeout=120, **options):
    """Runs Python in a child process; captures its output as text."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment(),
        check=False,
        **options,
    )
