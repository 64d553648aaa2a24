"""Times of conversions, and sizes and times of a model's exported files.

    python benchmarks/export_files.py --part convert|artifacts [--rounds 3] [--save]

convert: a Llama of 109M parameters with random weights goes out as ONNX and as GGUF in f32, f16 and
q8_0, without the comparison with the model. MB are those of its float32 weights.
artifacts: a Llama of 13.8M parameters goes out to each destination that is installed, and
`miniformer export-bench` measures the files. `--folder` keeps them for the next call.
Results are medians; `--save` adds them to results/export.json.
"""

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch

import miniformer
from environment import environment
from miniformer.exporters.bench.measure import Workload, format_table, measure_all

RESULTS = Path(__file__).parent / "results" / "export.json"
COMMON = {"causal": True, "norm": "rmsnorm", "activation": "swiglu", "bias": False,
          "dropout": 0.0, "norm_eps": 1e-5, "max_seq_len": 1024}  # fmt: skip
LARGE = {"vocab_size": 32000, "d_model": 768, "n_heads": 12, "n_layers": 12, "d_ff": 2048}
SMALL = {"vocab_size": 8192, "d_model": 384, "n_heads": 6, "n_layers": 6, "d_ff": 1024}
GGUF_TYPES = ("f32", "f16", "q8_0")
# name -> package that the measured process needs, and arguments of the export
ARTIFACTS = {
    "onnx float32": ("onnxruntime", {"to": "onnx"}),
    "onnx int8": ("onnxruntime", {"to": "onnx", "weights": "int8"}),
    "onnx int4": ("onnxruntime", {"to": "onnx", "weights": "int4"}),
    "openvino": ("openvino", {"to": "openvino"}),
    "pt2": ("torch", {"to": "pt2"}),
    "aoti": ("torch", {"to": "aoti"}),
    "gguf f16": ("llama_cpp", {"to": "gguf", "weights": "f16"}),
    "gguf q8_0": ("llama_cpp", {"to": "gguf", "weights": "q8_0"}),
}
COLUMNS = ("size_mb", "memory_mb", "first_s", "token_ms")


def save_model(shape, folder):
    """Writes a model with random weights; its number of parameters."""
    torch.manual_seed(0)
    model = miniformer.Transformer(miniformer.TransformerConfig(**shape, **COMMON)).eval()
    model.save_pretrained(folder)
    return sum(weight.numel() for weight in model.parameters())


def seconds(function):
    """Seconds of the clock."""
    start_time = time.perf_counter()
    function()
    return time.perf_counter() - start_time


def convert(folder, rounds, shape):
    """Seconds to ONNX, and MB a second to GGUF."""
    count = save_model(shape, folder / "model")
    results = {"parameters": count, "onnx_seconds": [], "gguf_mb_per_second": {}}
    speeds = {kind: [] for kind in GGUF_TYPES}
    for number in range(rounds):
        for kind in GGUF_TYPES:
            out = folder / "model.gguf"
            time_s = seconds(
                lambda out=out, kind=kind: miniformer.export(
                    folder / "model", out, to="gguf", weights=kind, verify=False
                )
            )
            speeds[kind].append(4 * count / 1e6 / time_s)
            out.unlink()
        if number == 0:  # one is enough for a bound of a minute
            time_s = seconds(
                lambda: miniformer.export(folder / "model", folder / "o", to="onnx", verify=False)
            )
            results["onnx_seconds"] = round(time_s, 1)
            shutil.rmtree(folder / "o")
        print(f"round {number + 1} of {rounds}", flush=True)
    results["gguf_mb_per_second"] = {k: round(statistics.median(v)) for k, v in speeds.items()}
    return results


def artifacts(folder, rounds, shape):
    """Size, memory and times of each exported file, as `export-bench` measures them."""
    if not (folder / "model").exists():
        save_model(shape, folder / "model")
    paths = {"model": folder / "model"}
    for name, (package, options) in ARTIFACTS.items():
        if importlib.util.find_spec(package) is None:
            print(f"{name}: left out, {package} is not installed", flush=True)
            continue
        suffix = ".gguf" if options["to"] == "gguf" else ""
        paths[name] = folder / (name.replace(" ", "-") + suffix)
        if not paths[name].exists():
            print(f"export {name}", flush=True)
            miniformer.export(folder / "model", paths[name], verify=False, **options)
    measured = measure_all([*map(str, paths.values())], Workload(32, 128, 1), rounds)
    print(format_table(measured))
    return {
        name: {column: round(result[column], 3) for column in COLUMNS}
        for name, result in zip(paths, measured, strict=True)
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=("convert", "artifacts"), required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="folder of the exported files; kept")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the script")
    parser.add_argument("--save", action="store_true", help="add to results/export.json")
    args = parser.parse_args()
    shape = LARGE if args.part == "convert" else SMALL
    if args.tiny:
        shape = {"vocab_size": 96, "d_model": 32, "n_heads": 2, "n_layers": 1, "d_ff": 64}
    load = round(os.getloadavg()[0], 1)
    part = {"convert": convert, "artifacts": artifacts}[args.part]
    with tempfile.TemporaryDirectory() as name:
        folder = args.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        results = part(folder, args.rounds, shape)
    print(json.dumps(results, indent=2))
    if args.save:
        peers = ("onnxruntime", "onnx", "openvino", "llama_cpp_python", "gguf", "numpy")
        stored = {"environment": environment(*peers), "rounds": args.rounds, "load": load}
        stored["results"] = results
        merged = json.loads(RESULTS.read_text()) | {args.part: stored}
        RESULTS.write_text(json.dumps(merged, indent=2) + "\n")


if __name__ == "__main__":
    main()
