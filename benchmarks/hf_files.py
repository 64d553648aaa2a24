"""Speed and peak memory of the import and export of a large Hugging Face checkpoint.

    python benchmarks/hf_files.py --save

A random Llama checkpoint is written, then each function processes it in a separate process. `peak`
is the peak resident set of the process relative to the size of the weights; `peak_beside` excludes
the memory in use before the call, with torch loaded; `mb_s` is the size over the time. The baseline
is a copy of the file, with and without a sync to the disk.
"""

from __future__ import annotations

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

from environment import environment
from miniformer.config import TransformerConfig
from miniformer.config.architectures import architecture_config
from miniformer.interop.hf.export import select_family
from miniformer.interop.hf.files import TensorSpec, write_tensors
from miniformer.interop.hf.load import meta_model
from miniformer.interop.hf.weights import map_tensors

SCRIPT = """
import sys, time
import torch, miniformer
miniformer.import_hf, miniformer.to_hf, miniformer.from_hf  # imported before the measurement
name, source, out = sys.argv[1:]
def peak_rss():
    # Not getrusage, which includes the memory of the parent at the fork.
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
before, start_time = peak_rss(), time.perf_counter()
if name == "from_hf":
    pipeline = miniformer.from_hf(source)
else:
    getattr(miniformer, name)(source, out)
print(time.perf_counter() - start_time, peak_rss(), before)
"""


def write_checkpoint(path, config, dtype):
    """Writes a checkpoint of random numbers, tensor by tensor; returns its size in bytes."""
    family, name, hf_config = select_family(config, seq2seq=False)
    weights = meta_model(config, seq2seq=False).state_dict()
    shapes = {key: tensor.shape for key, tensor in weights.items()}
    plan = map_tensors(family.weight_rules(name, config), shapes)
    path.mkdir()
    (path / "config.json").write_text(json.dumps(hf_config))
    write_tensors(
        path / "model.safetensors",
        [TensorSpec(mapping.hf_name, dtype, mapping.shape()) for mapping in plan],
        (torch.randn(mapping.shape(), dtype=dtype) for mapping in plan),
    )
    return (path / "model.safetensors").stat().st_size


def benchmark(name, source, out):
    """Seconds, peak memory in bytes, and memory before the call."""
    shutil.rmtree(out, ignore_errors=True)
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, name, source, out],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [float(number) for number in result.stdout.split()]


def copy_seconds(source, folder, *, to_disk):
    """Duration of a copy of a file."""
    start_time = time.perf_counter()
    shutil.copyfile(source, folder / "copy")
    if to_disk:
        with (folder / "copy").open("rb+") as file:
            os.fsync(file.fileno())
    seconds = time.perf_counter() - start_time
    (folder / "copy").unlink()
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--d_model", type=int, default=2048)
    parser.add_argument("--n_layers", type=int, default=18)
    parser.add_argument("--types", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="write results/hf_files.json")
    options = parser.parse_args()
    config = TransformerConfig(
        **architecture_config(
            "llama", vocab_size=64000, d_model=options.d_model, n_heads=16, n_kv_heads=4,
            n_layers=options.n_layers, d_ff=3 * options.d_model, tie_embeddings=True,
        )
    )  # fmt: skip
    rows = {}
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)
        for dtype in options.types:
            size = write_checkpoint(folder / "hf", config, getattr(torch, dtype))
            benchmark("import_hf", folder / "hf", folder / "model")
            functions = {
                "import_hf": (folder / "hf", folder / "imported"),
                "to_hf": (folder / "model", folder / "exported"),
                "from_hf": (folder / "hf", folder / "none"),
            }
            runs = {name: [] for name in functions}
            copies = {"copy": [], "copy_to_disk": []}
            for _ in range(options.rounds):
                for name, (source, out) in functions.items():
                    runs[name].append(benchmark(name, source, out))
                    shutil.rmtree(out, ignore_errors=True)
                for name, times in copies.items():
                    weights = folder / "hf" / "model.safetensors"
                    times.append(copy_seconds(weights, folder, to_disk=name == "copy_to_disk"))
            rows[dtype] = {"parameters": config.num_params(), "megabytes": round(size / 1e6)} | {
                name: {"mb_s": round(size / 1e6 / statistics.median(times))}
                for name, times in copies.items()
            }
            for name, rounds in runs.items():
                seconds, peak, before = map(statistics.median, zip(*rounds, strict=True))
                rows[dtype][name] = {
                    "mb_s": round(size / 1e6 / seconds),
                    "peak": round(peak / size, 3),
                    "peak_beside": round((peak - before) / size, 3),
                }
            shutil.rmtree(folder / "hf")
            shutil.rmtree(folder / "model")
    result = {
        "environment": environment(),
        "rounds": options.rounds,
        "results": rows,
    }
    print(json.dumps(result, indent=2))
    if options.save:
        path = Path(__file__).parent / "results" / "hf_files.json"
        path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
