"""Accuracy of adapters compared with training of all weights, and bytes of several on one base.

    python benchmarks/adapter_quality.py [DATA] [--steps 600] [--seeds 3] [--save]

DATA is a folder with agnews/, sst2/ and sms_spam/ (train.jsonl, val.jsonl, test.jsonl). A masked
language model is trained on the texts of agnews. It is then trained on 1,000 labels in three ways:
all weights, LoRA, and LoRA on a base of int8. At last LoRA is trained for three tasks on the base.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from safetensors.torch import load_file

import miniformer
from environment import environment

RESULTS = Path(__file__).parent / "results" / "adapter_quality.json"
MODEL = {"vocab_size": 4000, "d_model": 128, "n_heads": 4, "n_layers": 4, "max_seq_len": 96}
LORA = {"adapter": "lora", "adapter_config": {"r": 4, "alpha": 16}, "lr": 5e-3}
WAYS = {
    "full": {"lr": 1e-3},
    "lora": LORA,
    "int8": {**LORA, "base_weights": "int8"},
}
TASKS = ("agnews", "sst2", "sms_spam")
DATA = Path("../shared/data")


def read(data, name, split, count=None):
    lines = (data / name / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[:count]]


def train(records, val, folder, name, **settings):
    """Trains a model; the folder of its run."""
    result = miniformer.train(
        records, val=val, batch_size=32, seq_len=MODEL["max_seq_len"], quiet=True, logger="none",
        work_dir=str(folder), experiment_name=name, **settings,
    )  # fmt: skip
    return Path(result.model).parent


def num_trained(directory):
    """Number of weights that an adapter directory has."""
    return sum(x.numel() for x in load_file(directory / "adapter_model.safetensors").values())


def bytes_of(directory):
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="?", default=DATA)
    parser.add_argument("--steps", type=int, default=600, help="of the masked language model")
    parser.add_argument("--base", type=Path, help="folder of its run, which is used if it is there")
    parser.add_argument("--labels", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3, help="0: only the base is made")
    parser.add_argument("--test", type=int, help="test records; all of them by default")
    parser.add_argument("--tasks", nargs="+", default=TASKS, help="tasks that share the base")
    parser.add_argument("--save", action="store_true", help=f"write results/{RESULTS.name}")
    given = parser.parse_args()
    labeled = read(given.data, "agnews", "train", given.labels)
    val, test = read(given.data, "agnews", "val", 500), read(given.data, "agnews", "test")
    test = test[: given.test]
    row = {"labels": len(labeled), "test_records": len(test), "pretraining_steps": given.steps}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = given.base or folder / "base"
        if not run.exists():
            texts = [{"text": x["input"]} for x in read(given.data, "agnews", "train")]
            train(
                texts, [{"text": x["input"]} for x in val], run.parent, run.name, task="masked_lm",
                model_config=MODEL, max_steps=given.steps,
            )  # fmt: skip
        if not given.seeds:
            return
        base = run / "best"
        weights = sum(x.numel() for x in miniformer.load(base).model.parameters())
        options = {"task": "classification", "init_from": str(base)}
        accuracies = {way: [] for way in WAYS}
        for seed in range(given.seeds):
            for way, settings in WAYS.items():
                run = train(
                    labeled, val, folder, f"{way}{seed}", seed=seed, max_epochs=given.epochs,
                    **options, **settings,
                )  # fmt: skip
                evaluation = miniformer.load(run / "best").evaluate(test, num_resamples=0)
                accuracies[way].append(round(evaluation.metrics["accuracy"], 4))
                print(way, seed, accuracies[way][-1], flush=True)
                if way == "lora":
                    row["trained_share"] = round(num_trained(run / "adapter") / weights, 4)
        row["accuracy"] = accuracies
        means = {way: statistics.fmean(values) for way, values in accuracies.items()}
        row["lora less full"] = round(means["lora"] - means["full"], 4)
        row["int8 less lora"] = round(means["int8"] - means["lora"], 4)
        sizes = []
        for task in given.tasks:
            records = read(given.data, task, "train", given.labels)
            run = train(records, records[:50], folder, task, max_epochs=1, **options, **LORA)
            sizes.append(bytes_of(run / "adapter"))
        row["adapter_bytes"] = dict(zip(given.tasks, sizes, strict=True))
        row["bytes_ratio"] = round(1 + sum(sizes) / bytes_of(base), 4)
    print(json.dumps(row, indent=2))
    if given.save:
        stored = {"environment": environment(), "model": MODEL, "row": row}
        RESULTS.write_text(json.dumps(stored, indent=2) + "\n")


if __name__ == "__main__":
    main()
