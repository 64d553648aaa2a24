"""How fast a large checkpoint of Hugging Face's comes in and goes out, and in how much memory.

    python benchmarks/hf_files.py --save

A random checkpoint in the shape of Llama is written, then read and written by each way in a process
of its own. `peak` is the most memory the process ever held (its resident set) over the size of the
weights, `peak_beside` the same less what the process held before, with torch loaded; `mb_s` is the
size over the time. Copying the file, synchronised to the disk and not, is measured beside it.
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

PART = """
import sys, time
import torch, miniformer
miniformer.import_hf, miniformer.to_hf, miniformer.from_hf  # loaded before it is measured
what, source, out = sys.argv[1:]
def held():
    # Not getrusage: what the parent held when it forked counts there.
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
before, began = held(), time.perf_counter()
if what == "from_hf":
    kept = miniformer.from_hf(source)
else:
    getattr(miniformer, what)(source, out)
print(time.perf_counter() - began, held(), before)
"""


def make(path, config, kind):
    """Writes a checkpoint of random numbers, tensor by tensor; returns its bytes."""
    chosen, name, theirs = select_family(config, seq2seq=False)
    weights = {
        key: each.shape for key, each in meta_model(config, seq2seq=False).state_dict().items()
    }
    plan = map_tensors(chosen.weight_rules(name, config), weights)
    path.mkdir()
    (path / "config.json").write_text(json.dumps(theirs))
    write_tensors(
        path / "model.safetensors",
        [TensorSpec(piece.hf_name, kind, piece.shape()) for piece in plan],
        (torch.randn(piece.shape(), dtype=kind) for piece in plan),
    )
    return (path / "model.safetensors").stat().st_size


def measured(what, source, out):
    """Seconds, most bytes held, bytes held before."""
    shutil.rmtree(out, ignore_errors=True)
    done = subprocess.run(
        [sys.executable, "-c", PART, what, source, out], capture_output=True, text=True, check=True
    )
    return [float(word) for word in done.stdout.split()]


def copied(source, folder, *, to_disk):
    """Seconds that copying a file takes."""
    began = time.perf_counter()
    shutil.copyfile(source, folder / "copy")
    if to_disk:
        with (folder / "copy").open("rb+") as file:
            os.fsync(file.fileno())
    took = time.perf_counter() - began
    (folder / "copy").unlink()
    return took


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
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind in options.types:
            size = make(folder / "theirs", config, getattr(torch, kind))
            measured("import_hf", folder / "theirs", folder / "ours")
            ways = {
                "import_hf": (folder / "theirs", folder / "imported"),
                "to_hf": (folder / "ours", folder / "exported"),
                "from_hf": (folder / "theirs", folder / "none"),
            }
            found = {way: [] for way in ways}
            copies = {"copy": [], "copy_to_disk": []}
            for _ in range(options.rounds):
                for way, (source, out) in ways.items():
                    found[way].append(measured(way, source, out))
                    shutil.rmtree(out, ignore_errors=True)
                for each in copies:
                    weights = folder / "theirs" / "model.safetensors"
                    copies[each].append(copied(weights, folder, to_disk=each == "copy_to_disk"))
            rows[kind] = {"parameters": config.num_params(), "megabytes": round(size / 1e6)} | {
                each: {"mb_s": round(size / 1e6 / statistics.median(times))}
                for each, times in copies.items()
            }
            for way, runs in found.items():
                seconds, peak, before = (
                    statistics.median(each) for each in zip(*runs, strict=True)
                )
                rows[kind][way] = {
                    "mb_s": round(size / 1e6 / seconds),
                    "peak": round(peak / size, 3),
                    "peak_beside": round((peak - before) / size, 3),
                }
            shutil.rmtree(folder / "theirs")
            shutil.rmtree(folder / "ours")
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
