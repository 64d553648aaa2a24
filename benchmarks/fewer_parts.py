"""Decoding speed of a model with half of its feed-forward, or half of its layers.

    python benchmarks/fewer_parts.py [--d_model 768] [--n_layers 12] [--vocab 4096] [--save]

The weights are random, since only shapes matter: those that `miniformer prune --remove` writes.
Each shape decodes one text in float32 and with int8 weights. All of them work in turns, in rotated
order; a ratio is the median of those of the rounds. The last column is the share of weights that a
token reads relative to the full model: its inverse is the largest possible ratio of a model that
does not fit into the caches.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

import miniformer
from environment import environment

RESULTS = Path(__file__).parent / "results" / "fewer_parts.json"
DTYPES = ("float32", "int8")


def make_models(d_model, n_layers, vocab):
    """The full model, and those with half of a part, by name."""
    sizes = {"d_model": d_model, "n_layers": n_layers, "d_ff": 4 * d_model, "vocab_size": vocab}
    changes = {
        "full": {},
        "half of ffn": {"d_ff": 2 * d_model},
        "half of layers": {"n_layers": n_layers // 2},
    }
    models = {}
    for name, change in changes.items():
        torch.manual_seed(0)
        config = miniformer.TransformerConfig(
            **{**sizes, **change}, n_heads=d_model // 64, causal=True, max_seq_len=512
        )
        models[name] = miniformer.Transformer(config).eval()
    return models


def measure(models, rounds, tokens):
    """Seconds of each model and type of weights, by round."""
    prompt = torch.arange(1, 17)[None]
    keys = [(name, dtype) for dtype in DTYPES for name in models]
    seconds = {key: [] for key in keys}
    for turn in range(rounds + 1):
        start = turn % len(keys)
        for name, dtype in keys[start:] + keys[:start]:
            started = time.perf_counter()
            models[name].generate(
                prompt, max_new_tokens=tokens, temperature=0.0, weight_dtype=dtype
            )
            if turn:
                seconds[name, dtype].append(time.perf_counter() - started)
    return seconds


def rows_of(models, seconds, tokens):
    """Tokens/s of each model, and its speed relative to the full one."""
    read = {name: model.config.num_params() for name, model in models.items()}
    return [
        {
            "form": name,
            "weights": dtype,
            "parameters": read[name],
            "tokens_per_s": round(tokens / statistics.median(own), 1),
            "speed": round(
                statistics.median(
                    full / part for full, part in zip(seconds["full", dtype], own, strict=True)
                ),
                3,
            ),
            "share_of_weights": round(read[name] / read["full"], 3),
        }
        for (name, dtype), own in seconds.items()
    ]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--d_model", type=int, default=768)
    parser.add_argument("--n_layers", type=int, default=12)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--save", action="store_true", help=f"write results/{RESULTS.name}")
    given = parser.parse_args()
    models = make_models(given.d_model, given.n_layers, given.vocab)
    rows = rows_of(models, measure(models, given.rounds, given.tokens), given.tokens)
    for row in rows:
        print(json.dumps(row))
    if given.save:
        sizes = {"d_model": given.d_model, "n_layers": given.n_layers, "vocab_size": given.vocab}
        result = {"environment": environment(), **sizes, "rows": rows}
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
