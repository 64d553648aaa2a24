"""Speed of encoders whose linear layers have fewer bits, compared with float32, on a CPU.

    python benchmarks/encoders.py [--widths 256 384 512 768] [--rounds 15] [--save]

An encoder of `--layers` layers reads batches of 32 tokens a record. The types of weights alternate
in one process, in a different order each round. `time_ratio` is the median over rounds of the time
of float32 divided by that of the type: above 1, the type is faster. `share_of_gemm_peak` is the
rate of multiplications of the whole encoder compared with the fastest float32 product of two
matrices in the same rounds. `error` is the distance of the features from those of float32, relative
to their size, of random weights.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from environment import environment
from miniformer import Transformer, TransformerConfig
from miniformer.generation.inference import inference_model
from miniformer.model.ops.products import matmul

RESULTS = Path(__file__).parent / "results" / "encoders.json"
DTYPES = ("float32", "bf16", "int8", "int4")
LENGTH = 32
PEAK_SIZE = 1024  # rows and columns of the product that measures the peak


def seconds_of(function):
    """Result of a function, and its seconds."""
    start_time = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start_time


def measure(width, batch, layers, rounds):
    """Medians of each type of weights."""
    torch.manual_seed(0)
    heads = max(1, width // 64)
    sizes = {"d_model": width, "n_heads": heads, "n_layers": layers, "max_seq_len": LENGTH}
    model = Transformer(TransformerConfig(vocab_size=1000, causal=False, **sizes)).eval()
    ids = torch.randint(0, 1000, (batch, LENGTH))
    models = {dtype: inference_model(model, dtype) for dtype in DTYPES}
    matrix = torch.randn(PEAK_SIZE, PEAK_SIZE)
    seconds, errors, peak = {dtype: [] for dtype in DTYPES}, {}, []
    with torch.inference_mode():
        exact = model.features(ids)
        for turn in range(rounds + 2):
            times = {}
            for number in range(len(DTYPES)):
                dtype = DTYPES[(number + turn) % len(DTYPES)]
                result, times[dtype] = seconds_of(lambda: models[dtype].features(ids))  # noqa: B023
                errors[dtype] = float((result - exact).norm() / exact.norm())
            peak.append(PEAK_SIZE**3 / seconds_of(lambda: matmul(matrix, matrix))[1])
            if turn >= 2:
                for dtype, value in times.items():
                    seconds[dtype].append(value)
    linear = sum(p.numel() for n, p in model.named_parameters() if "layers." in n and p.dim() == 2)
    products = batch * LENGTH * (linear + layers * 2 * LENGTH * width)
    row = {"width": width, "batch": batch, "gemm_peak_gflops": round(2 * max(peak) / 1e9)}
    for dtype in DTYPES:
        median = statistics.median(seconds[dtype])
        pairs = zip(seconds["float32"], seconds[dtype], strict=True)
        row[dtype] = {
            "ms": round(1e3 * median, 2),
            "records_per_s": round(batch / median),
            "time_ratio": round(statistics.median(a / b for a, b in pairs), 2),
            "share_of_gemm_peak": round(products / median / max(peak), 2),
            "error": round(errors[dtype], 4),
        }
    row["fastest"] = min(DTYPES, key=lambda dtype: row[dtype]["ms"])
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 384, 512, 768])
    parser.add_argument("--batches", type=int, nargs="+", default=[16, 1], help="records at once")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--save", action="store_true", help=f"write results/{RESULTS.name}")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = []
    for width in given.widths:
        for batch in given.batches:
            rows.append(measure(width, batch, given.layers, given.rounds))
            print(json.dumps(rows[-1]), flush=True)
    if given.save:
        result = {
            "environment": environment(),
            "tokens_of_a_record": LENGTH,
            "layers": given.layers,
            "rounds": given.rounds,
            "rows": rows,
        }
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
