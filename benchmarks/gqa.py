"""Loss of a language model before and after its conversion to fewer heads of keys and values.

    python benchmarks/gqa.py [DATA] [--steps 200] [--n_kv_heads 2] [--save]

DATA is a folder with train.txt and val.txt. A decoder of 8 heads is trained; `convert` makes groups
of them by the mean and by `svd`, and each result is trained for a share of the steps (uptraining).
The model itself is trained for as many further steps, too, which is the fair comparison.
"""

import argparse
import json
import math
import tempfile
from pathlib import Path

import miniformer
from environment import environment
from miniformer import Pipeline
from miniformer.adapters.base.gqa import METHODS, convert_heads, input_moments
from miniformer.adapters.commands.convert import cache_bytes_per_token

RESULTS = Path(__file__).parent / "results" / "gqa.json"
MODEL = {"vocab_size": 2000, "d_model": 64, "n_heads": 8, "n_layers": 2, "max_seq_len": 128}
DATA = Path("../shared/data/wikitext2")


def train(records, val, steps, folder, name, **settings):
    """Trains a model; its directory."""
    result = miniformer.train(
        records, val=val, max_steps=steps, seq_len=128, batch_size=16, seed=0, quiet=True,
        work_dir=str(folder), experiment_name=name, logger="none", **settings,
    )  # fmt: skip
    return Path(result.model)


def loss(pipeline, records):
    """Loss of a pipeline in nats per token."""
    return round(pipeline.evaluate(records, num_resamples=0).metrics["loss"], 4)


def convert(directory, n_kv_heads, method, samples):
    """The pipeline of a model with fewer heads."""
    pipeline = miniformer.load(directory)
    with input_moments(pipeline.model) as moments:
        pipeline.evaluate(samples, num_resamples=0)
    model = convert_heads(pipeline.model, n_kv_heads, method, moments)
    converted = Pipeline(model, pipeline.tokenizer, pipeline.task, pipeline.generation)
    converted.data_settings = pipeline.data_settings
    return converted


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="?", default=DATA)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lines", type=int, default=6000, help="of the training text")
    parser.add_argument("--n_kv_heads", type=int, default=2)
    parser.add_argument("--share", type=float, default=0.05, help="of the steps, in uptraining")
    parser.add_argument("--lr", type=float, default=1e-3, help="of uptraining")
    parser.add_argument("--save", action="store_true", help=f"write results/{RESULTS.name}")
    given = parser.parse_args()
    lines = (given.data / "train.txt").read_text(encoding="utf-8").splitlines()[: given.lines]
    val = (given.data / "val.txt").read_text(encoding="utf-8").splitlines()[: given.lines // 20]
    records, held_out = ([{"text": x} for x in rows if x.strip()] for rows in (lines, val))
    further = max(1, math.ceil(given.share * given.steps))
    uptraining = {"lr": given.lr, "warmup_steps": 0}
    row = {"lines": given.lines, "steps": given.steps, "uptraining_steps": further}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = train(records, held_out, given.steps, folder, "base", model_config=MODEL)
        pipeline = miniformer.load(base)
        row["before"] = loss(pipeline, held_out)
        print("before", row["before"], flush=True)
        more = train(records, held_out, further, folder, "more", init_from=str(base), **uptraining)
        row["trained_further"] = loss(miniformer.load(more), held_out)
        for method in METHODS:
            converted = convert(base, given.n_kv_heads, method, records[:200])
            result = {"after": loss(converted, held_out)}
            converted.save(folder / method)
            start = str(folder / method)
            trained = train(
                records, held_out, further, folder, f"up-{method}", init_from=start, **uptraining
            )
            result["after_uptraining"] = loss(miniformer.load(trained), held_out)
            result["change"] = round(result["after_uptraining"] - row["before"], 4)
            row[method] = result
            print(method, result, flush=True)
        sizes = [cache_bytes_per_token(x.model) for x in (pipeline, converted)]
        row["cache_ratio"] = sizes[1] / sizes[0]
    print(json.dumps(row, indent=2))
    if given.save:
        stored = {"environment": environment(), "model": MODEL, "row": row}
        RESULTS.write_text(json.dumps(stored, indent=2) + "\n")


if __name__ == "__main__":
    main()
