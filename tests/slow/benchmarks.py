"""One quick round of every script in benchmarks/: `python -m tests.slow.benchmarks [SCRIPT...]`.

It checks that the scripts run. The results are not meaningful and are not saved.
"""

import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.slow import ROOT

LIMIT_S = 900
TINY = {"d_model": 32, "n_heads": 2, "n_layers": 2, "max_seq_len": 64}
# Arguments of each script; {data} is a folder of random text in {sets}, {model} a tiny model of it.
SCRIPTS = {
    "adapter_quality.py": [
        "{sets}", "--steps", "3", "--labels", "40", "--epochs", "1", "--seeds", "1", "--test", "20",
        "--tasks", "agnews",
    ],
    "adapters.py": ["--rounds", "1", "--tiny", "--batch", "2", "--length", "16"],
    "beams.py": ["--rounds", "1"],
    "compression.py": [
        "tinyshakespeare", "{run}", "{data}", "--forms", "int8", "--rounds", "1", "--tokens", "2",
    ],
    "data_size.py": ["--large_mb", "3", "--small_mb", "1", "--steps", "3"],
    "defaults.py": [
        "{sets}", "--sets", "tinyshakespeare", "--seeds", "1", "--policy", "tiny", "--settings",
        json.dumps({"max_steps": 4, "seq_len": 32, "model_config": TINY}),
    ],
    "encoders.py": ["--widths", "32", "--layers", "1", "--rounds", "1", "--batches", "2"],
    "environment.py": [],
    "exits.py": [
        "agnews", "{sets}/agnews", "--layers", "2", "--max_loss", "0.5", "--confidence", "0.5",
        "--splits", "2", "--rounds", "1",
    ],
    "export.py": ["--rounds", "1"],
    "export_files.py": ["--part", "convert", "--tiny", "--rounds", "1"],
    "export_quality.py": ["{sets}", "--minutes", "0.05", "--records", "4"],
    "fewer_parts.py": [
        "--d_model", "64", "--n_layers", "2", "--vocab", "64", "--rounds", "1", "--tokens", "4",
    ],
    "first_run.py": ["{sets}/agnews", "--max_time", "2s"],
    "generation.py": ["--rounds", "1"],
    "gqa.py": ["{data}", "--steps", "3", "--lines", "400"],
    "hf_files.py": ["--d_model", "64", "--n_layers", "2", "--types", "float32", "--rounds", "1"],
    "layer_drafts.py": [
        "{model}", "{data}/val.txt", "--layers", "1", "--prompts", "2", "--prompt_tokens", "4",
        "--tokens", "8", "--rounds", "1",
    ],
    "loading.py": [
        "--d_model", "64", "--n_layers", "1", "--vocab", "64", "--rounds", "1", "--tokens", "4",
    ],
    "norms.py": ["--rounds", "1"],
    "optimizers.py": ["--text", "{data}", "--steps", "4", "--seeds", "1"],
    "packing.py": ["--batch_sizes", "8", "--rounds", "1", "--seconds", "0.2"],
    "products.py": ["--rounds", "1", "--width", "64"],
    "quality.py": [
        "tinyshakespeare", "{data}", "--seeds", "1", "--change",
        json.dumps({"max_steps": 4, "seq_len": 32, "model_config": TINY}),
    ],
    "quality_page.py": ["--check"],
    "quick.py": ["--list"],
    "quick_page.py": ["--check"],
    "sft.py": ["--part", "speed", "--conversations", "4", "--rounds", "1"],
    "time_to_loss.py": ["{data}", "--reference", "51", "--seeds", "1"],
    "train_step.py": [
        "--layers", "1", "--width", "64", "--seq-len", "32", "--batch-size", "2",
        "--vocab", "65", "--rounds", "1", "--memory",
    ],
    "trainer_overhead.py": ["--steps", "20", "--sizes", "tiny", "--validations", "1"],
    "weights.py": ["{model}", "{data}/val.txt", "--rows", "2", "--tokens", "32"],
    "serve.py": [
        "--clients", "2", "--requests", "4", "--rounds", "1", "--weights", "float32",
    ],
}  # fmt: skip
# Packages that a script measures if they are installed.
PEERS = {
    "adapters.py": ("transformers", "peft"),
    "beams.py": ("transformers", "ctranslate2"),
    "export.py": ("transformers", "onnxruntime"),
    "export_files.py": ("onnxruntime", "gguf"),
    "export_quality.py": ("onnxruntime", "sacrebleu"),
    "generation.py": ("transformers", "llama_cpp", "gguf"),
    "sft.py": ("trl",),
    "train_step.py": ("transformers",),
}
CHECKOUTS = {"train_step.py": ("nanoGPT", "LitGPT"), "time_to_loss.py": ("nanoGPT",)}


def main(names: list[str]) -> int:
    """Runs the scripts; returns the exit code."""
    scripts = {path.name for path in (ROOT / "benchmarks").glob("*.py")}
    failed = []
    for name in sorted(scripts ^ SCRIPTS.keys()):
        print(f"{name}: {'has no arguments in SCRIPTS' if name in scripts else 'is not there'}")
        failed.append(name)
    with tempfile.TemporaryDirectory() as folder:
        values = {
            "data": f"{folder}/sets/tinyshakespeare",
            "sets": f"{folder}/sets",
            "model": f"{folder}/runs/tiny/last",
            "run": f"{folder}/runs/tiny",
        }
        make(Path(folder), values)
        for name in names or sorted(SCRIPTS):
            for peer in PEERS.get(name, ()):
                if importlib.util.find_spec(peer) is None:
                    print(f"{name}: without {peer}, which is not installed")
            for peer in CHECKOUTS.get(name, ()):
                print(f"{name}: without {peer}, of which a checkout is needed")
            start_time = time.monotonic()
            arguments = list(SCRIPTS[name])
            for key, value in values.items():
                arguments = [argument.replace(f"{{{key}}}", value) for argument in arguments]
            problem = run([f"benchmarks/{name}", *arguments])
            print(f"{name}: {problem or 'ran'} ({time.monotonic() - start_time:.0f} s)", flush=True)
            if problem:
                failed.append(name)
    print(f"benchmarks: {'failed: ' + ', '.join(failed) if failed else 'all scripts run'}")
    return int(bool(failed))


def make(folder: Path, values: dict[str, str]) -> None:
    """Writes random text and trains a tiny model on it."""
    data = Path(values["data"])
    data.mkdir(parents=True)
    rng = random.Random(0)
    tokens = ["".join(rng.choices("abcdefghij", k=rng.randint(1, 8))) for _ in range(300)]
    for split, lines in (("train", 3000), ("val", 300)):
        text = "\n".join(" ".join(rng.choices(tokens, k=8)) for _ in range(lines))
        (data / f"{split}.txt").write_text(text + "\n", encoding="utf-8")
    for name, keys in (("multi30k_ende", ("source", "target")), ("agnews", ("input", "label"))):
        (data.parent / name).mkdir()
        for split, count in (("train", 300), ("val", 50), ("test", 50)):
            texts = [" ".join(rng.choices(tokens, k=8)) for _ in range(2 * count)]
            targets = texts[count:] if name == "multi30k_ende" else [n % 4 for n in range(count)]
            rows = (
                dict(zip(keys, pair, strict=True))
                for pair in zip(texts[:count], targets, strict=True)
            )
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (data.parent / name / f"{split}.jsonl").write_text(text, encoding="utf-8")
    problem = run([
        "-m", "miniformer.trainer", "--train_path", f"{data}/train.txt", "--tokenizer", "char",
        "--model_config", json.dumps(TINY), "--max_steps", "3", "--logger", "none",
        "--work_dir", f"{folder}/runs", "--experiment_name", "tiny",
    ])  # fmt: skip
    if problem:
        raise RuntimeError(problem)


def run(arguments: list[str]) -> str | None:
    """Runs Python; the end of its error output if it fails."""
    try:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, env=os.environ, capture_output=True,
            text=True, timeout=LIMIT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"FAILED: no end within {LIMIT_S} s"
    if done.returncode:
        return f"FAILED with exit code {done.returncode}\n{done.stderr[-1500:]}"
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
