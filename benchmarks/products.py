"""Float32 products by the library that this package takes on a CPU, compared with torch's.

    python benchmarks/products.py [--rounds 9] [--width 384] [--save]

A linear layer, a step of Muon's orthogonalization, and the forward and training passes of a decoder
of six layers alternate with both libraries in one process. `time_ratio` is the median over rounds
of the time of this package's choice divided by that of torch's: below 1, it is faster. On a
processor where both are one library there is nothing to compare, and the script says so.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from environment import environment
from miniformer import Transformer, TransformerConfig
from miniformer.model.ops import products
from miniformer.training.optim.muon import orthogonalize

RESULTS = Path(__file__).parent / "results" / "products.json"
ROWS, LENGTH, VOCABULARY = 2048, 256, 65


def works(width):
    """Functions to time by name."""
    torch.manual_seed(0)
    x = torch.randn(ROWS, width, requires_grad=True)
    weight = torch.randn(4 * width, width, requires_grad=True)
    grad = torch.randn(ROWS, 4 * width)
    matrices = torch.randn(12, width, width)
    config = TransformerConfig(
        vocab_size=VOCABULARY, d_model=width, n_heads=width // 64 or 1, n_layers=6,
        max_seq_len=LENGTH, dropout=0.0,
    )  # fmt: skip
    model = Transformer(config)
    tokens = torch.randint(VOCABULARY, (4, LENGTH))

    def forward():
        with torch.inference_mode():
            model(tokens)

    def train():
        F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()

    def muon():
        with torch.no_grad():
            orthogonalize(matrices)

    return {
        "linear layer, forward": lambda: products.linear(x.detach(), weight.detach()),
        "linear layer, with gradients": lambda: products.linear(x, weight).backward(grad),
        "orthogonalization of 12 matrices": muon,
        "decoder of 6 layers, forward": forward,
        "decoder of 6 layers, with gradients": train,
    }


def measure(work, rounds):
    """Median seconds with each library, and their ratio."""
    choice = products._is_faster
    libraries = {"onednn": choice, "torch": lambda: False}
    seconds = {name: [] for name in libraries}
    try:
        for turn in range(rounds + 1):
            names = list(libraries)
            for name in names if turn % 2 else reversed(names):
                products._is_faster = libraries[name]
                start_time = time.perf_counter()
                work()
                if turn:
                    seconds[name].append(time.perf_counter() - start_time)
    finally:
        products._is_faster = choice
    pairs = zip(seconds["onednn"], seconds["torch"], strict=True)
    return {
        **{f"{name}_ms": round(1e3 * statistics.median(s), 3) for name, s in seconds.items()},
        "time_ratio": round(statistics.median(a / b for a, b in pairs), 3),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--save", action="store_true")
    args = parser.parse_args()
    if not products._is_faster():
        print("this package takes torch's choice on this processor")
        return
    rows = {name: measure(work, args.rounds) for name, work in works(args.width).items()}
    for name, row in rows.items():
        print(name, row)
    if args.save:
        result = {
            "rows": ROWS,
            "width": args.width,
            "works": rows,
            "environment": environment(threads=torch.get_num_threads()),
        }
        RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
