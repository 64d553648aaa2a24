"""Memory of loading a quantized directory, and its decoding speed.

    python benchmarks/loading.py [--d_model 768] [--n_layers 12] [--vocab 16384] [--save]

A decoder with random weights is stored as float32, int8 and int4. Loading: growth of the largest
resident memory of a process that has loaded a tiny model of the same type before, compared with the
bytes of the directory and with those of the loaded weights, which are float32. Decoding: tokens/s
of a stored directory, compared with those of the float32 directory whose weights are rounded to the
same type for decoding (`weight_dtype`). All of them work in turns, in rotated order.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import miniformer
from environment import environment

RESULTS = Path(__file__).parent / "results" / "loading.json"
TYPES = ("float32", "int8", "int4")
TINY = {"d_model": 64, "n_layers": 1, "vocab_size": 64}


def write_directories(folder, **sizes):
    """Writes a model in each type; the directories by type."""
    torch.manual_seed(0)
    config = miniformer.TransformerConfig(
        **sizes, n_heads=sizes["d_model"] // 64, causal=True, max_seq_len=512
    )
    model = miniformer.Transformer(config)
    directories = {dtype: folder / dtype for dtype in TYPES}
    model.save_pretrained(directories["float32"])
    for dtype in TYPES[1:]:
        miniformer.quantize(model, directories[dtype], to=dtype)
    return directories


def status(key):
    """A memory size of this process, in bytes."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(text.partition(f"{key}:")[2].split()[0]) * 1024


def measure_loading(tiny, directory):
    """Prints the growth of the largest resident memory in loading, and the bytes of the weights."""
    miniformer.Transformer.from_pretrained(tiny)
    # The largest becomes the current size.
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = status("VmRSS")
    started = time.perf_counter()
    model = miniformer.Transformer.from_pretrained(directory)
    seconds = time.perf_counter() - started
    growth = status("VmHWM") - before
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    print(json.dumps({"growth": growth, "weights": weights, "seconds": seconds}))


def loading_row(dtype, tiny, directory):
    """Memory of loading a directory, in a process of its own; the median of 3."""
    command = [sys.executable, __file__, "--load", str(tiny), str(directory)]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    results = []
    for _ in range(3):
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environ)
        results.append(json.loads(done.stdout))
    growth, seconds = (
        statistics.median(result[name] for result in results) for name in ("growth", "seconds")
    )
    stored = sum(path.stat().st_size for path in directory.iterdir())
    return {
        "type": dtype,
        "directory_mb": round(stored / 1e6, 1),
        "peak_mb": round(growth / 1e6, 1),
        "peak_of_directory": round(growth / stored, 3),
        "peak_of_weights": round(growth / results[0]["weights"], 3),
        "seconds": round(seconds, 3),
    }


def decoding_rows(directories, rounds, tokens):
    """Tokens/s of each stored type, and the ratio to that of rounding when the model is used."""
    sources = {(dtype, "stored"): directories[dtype] for dtype in TYPES[1:]}
    sources |= {(dtype, "rounded"): directories["float32"] for dtype in TYPES[1:]}
    models = {key: miniformer.Transformer.from_pretrained(path) for key, path in sources.items()}
    prompt = torch.arange(1, 17)[None]
    seconds = {key: [] for key in models}
    for turn in range(rounds + 1):
        keys = list(models)
        for key in keys[turn % len(keys) :] + keys[: turn % len(keys)]:
            weight_dtype = "stored" if key[1] == "stored" else key[0]
            started = time.perf_counter()
            models[key].generate(
                prompt, max_new_tokens=tokens, temperature=0.0, weight_dtype=weight_dtype
            )
            if turn:
                seconds[key].append(time.perf_counter() - started)
    return [
        {
            "type": dtype,
            "tokens_per_s": round(tokens / statistics.median(seconds[dtype, "stored"]), 1),
            "speed_of_rounded": round(
                statistics.median(
                    rounded / stored
                    for stored, rounded in zip(
                        seconds[dtype, "stored"], seconds[dtype, "rounded"], strict=True
                    )
                ),
                3,
            ),
        }
        for dtype in TYPES[1:]
    ]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--d_model", type=int, default=768)
    parser.add_argument("--n_layers", type=int, default=12)
    parser.add_argument("--vocab", type=int, default=16384)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--load", nargs=2, metavar=("TINY", "DIRECTORY"), help="internal")
    parser.add_argument("--save", action="store_true", help=f"write results/{RESULTS.name}")
    given = parser.parse_args()
    if given.load:
        measure_loading(*given.load)
        return
    folder = Path(tempfile.mkdtemp())
    sizes = {"d_model": given.d_model, "n_layers": given.n_layers, "vocab_size": given.vocab}
    try:
        tiny = write_directories(folder / "tiny", **TINY)
        directories = write_directories(folder / "model", **sizes)
        loading = [loading_row(dtype, tiny[dtype], directories[dtype]) for dtype in TYPES]
        for row in loading:
            print(json.dumps(row), flush=True)
        decoding = decoding_rows(directories, given.rounds, given.tokens)
    finally:
        shutil.rmtree(folder)
    for row in decoding:
        print(json.dumps(row), flush=True)
    if given.save:
        result = {"environment": environment(), **sizes, "loading": loading, "decoding": decoding}
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
