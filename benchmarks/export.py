"""Speed of an exported ONNX folder: `run.py` beside transformers and its own int8 weights.

    python benchmarks/export.py [--rounds 5] [--save]

A Llama of 13.8M parameters with random weights generates 128 tokens greedily after a prompt of 32,
batch 1, in transformers, and in onnxruntime with float32 and int8 weights. Then a step after 100
columns is compared with one after 900. Last, processes start, load the model and generate one
token: `run.py`, and the same with torch and Miniformer. Rounds take all of them in turn; results
are medians of seconds of the processor, and of the clock, which a loaded machine makes longer.
Libraries that are not installed are skipped.
"""

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import miniformer
from environment import environment
from miniformer.exporters.onnx.runner.decoding import State
from miniformer.exporters.onnx.runner.run import Model
from miniformer.exporters.onnx.weights import round_graph

RESULTS = Path(__file__).parent / "results" / "export.json"
CONFIG = {"vocab_size": 8192, "d_model": 384, "n_heads": 6, "n_layers": 6, "d_ff": 1024,
          "causal": True, "norm": "rmsnorm", "activation": "swiglu", "bias": False,
          "dropout": 0.0, "norm_eps": 1e-5, "max_seq_len": 1024}  # fmt: skip
PROMPT, NEW = 32, 128
STEPS = 20
RUNNER = "import sys; sys.path.insert(0, sys.argv[1]); import run; run.Model(sys.argv[1]){}"
TORCH = (
    "import sys; from miniformer import Transformer;"
    "Transformer.from_pretrained(sys.argv[1]).eval(){}"
)


def seconds(function):
    """Seconds of the clock, and of the processor in this process and in its children."""
    start_time, before = time.perf_counter(), os.times()
    function()
    clock, after = time.perf_counter() - start_time, os.times()
    return clock, sum(after[:4]) - sum(before[:4])


def transformers_model(model, folder):
    """The same weights in transformers; None: it is not installed."""
    if importlib.util.find_spec("transformers") is None:
        return None
    import transformers

    miniformer.to_hf(model, folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def run_transformers(model, prompt):
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, min_new_tokens=NEW,
            do_sample=False, pad_token_id=0,
        )  # fmt: skip


def step_seconds(runner, columns):
    """Seconds of a step after a number of columns."""
    state = State(runner.graph("decoder"), [[1] * columns], {})

    def run():
        for _ in range(STEPS):
            state.append(np.array([1]))

    return tuple(value / STEPS for value in seconds(run))


def process_seconds(code, folder):
    """Seconds of a process from its start to its end."""
    command = [sys.executable, "-c", code, str(folder)]
    return seconds(lambda: subprocess.run(command, check=True, env=dict(os.environ)))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write results/export.json")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = miniformer.Transformer(miniformer.TransformerConfig(**CONFIG)).eval()
    prompt = torch.randint(0, 8000, (PROMPT,)).tolist()
    greedy = {"max_new_tokens": NEW, "temperature": 0.0}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model.save_pretrained(folder / "model")
        export_seconds = seconds(
            lambda: miniformer.export(folder / "model", folder / "float32", to="onnx", verify=False)
        )
        kinds = ("float32", "int8", "int4")
        for weights in kinds[1:]:
            shutil.copytree(folder / "float32", folder / weights)
            round_graph(folder / weights / "decoder.onnx", weights)
        threads = torch.get_num_threads()
        runners = {kind: Model(folder / kind, threads) for kind in kinds}
        runs = {
            f"run.py, {kind}": lambda runner=runner: runner.generate_tokens([prompt], **greedy)
            for kind, runner in runners.items()
        }
        if (hf_model := transformers_model(model, folder / "hf")) is not None:
            runs["transformers"] = lambda: run_transformers(hf_model, prompt)
        token = f"[[1] * {PROMPT}]"
        starts = {
            "run.py": (RUNNER.format(f".generate_tokens({token}, max_new_tokens=1)"), "float32"),
            "torch": (TORCH.format(f".generate({token}, 1)"), "model"),
        }
        for run in runs.values():
            run()
        times = {
            kind: [] for kind in (*runs, "step 100", "step 900", "start run.py", "start torch")
        }
        for index in range(args.rounds):
            names = [*runs]
            for kind in names[index % len(names) :] + names[: index % len(names)]:
                times[kind].append(seconds(runs[kind]))
            for columns in (100, 900):
                times[f"step {columns}"].append(step_seconds(runners["float32"], columns))
            for kind, (code, part) in starts.items():
                times[f"start {kind}"].append(process_seconds(code, folder / part))
            print(f"round {index + 1} of {args.rounds}", flush=True)
        sizes = {
            kind: round((folder / kind / "decoder.onnx").stat().st_size / 1e6, 1)
            for kind in runners
        }
    results = {"megabytes": sizes, "seconds_to_export": [round(x, 1) for x in export_seconds]}
    for number, unit in ((1, "processor"), (0, "clock")):
        medians = {kind: statistics.median(x[number] for x in v) for kind, v in times.items()}
        results[unit] = {
            "tokens_per_second": {kind: round(NEW / medians[kind], 1) for kind in runs},
            "ms_per_step": {n: round(1000 * medians[f"step {n}"], 2) for n in (100, 900)},
            "seconds_to_first_token": {n: round(medians[f"start {n}"], 2) for n in starts},
        }
    print(json.dumps(results, indent=2))
    if args.save:
        peers = ("transformers", "onnxruntime", "onnx", "numpy", "tokenizers")
        stored = {
            "environment": environment(*peers),
            "rounds": args.rounds,
            "load": round(os.getloadavg()[0], 1),
            **results,
        }
        parts = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        for part in ("convert", "artifacts"):  # of export_files.py
            if part in parts:
                stored[part] = parts[part]
        RESULTS.write_text(json.dumps(stored, indent=2) + "\n")


if __name__ == "__main__":
    main()
