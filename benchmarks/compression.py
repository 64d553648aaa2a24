"""Size, loss, metric and speed of the compressed forms of a recipe's model.

    python benchmarks/compression.py RECIPE RUN DATA [--forms NAME...] [--rounds 3] [--save]

RECIPE is the name of a file in recipes/, RUN the folder of its run, DATA the folder with its train,
val and test files. Each form of the model is made by the function of its command; records of train
calibrate. `miniformer.compare` measures all of them on test, or on val if there is no test file.
Forms that are trained further take at most a tenth of the steps of the run. `--save` adds the rows
to results/compression.json; docs/compression.md has a table of each recipe.
"""

import argparse
import json
import re
import shutil
import tempfile
import time
from pathlib import Path

import miniformer
from environment import environment
from quality import files_of, recipe_settings

RESULTS = Path(__file__).parent / "results" / "compression.json"
# Settings of a recipe that further training leaves out.
_LEFT_OUT = (
    "model_config",
    "tokenizer",
    "source_tokenizer",
    "pretrain",
    "max_epochs",
    "ema_decay",
    "average_checkpoints",
)
_SHARE_OF_STEPS = 0.1
_SHARE_OF_RATE = 0.01  # of the learning rate, in quantization-aware training


class Source:
    """The model of a recipe with its data.

    Args:
        recipe: name of the recipe.
        run: folder of its run.
        data: folder with its files.
        folder: for the files that are made.
    """

    def __init__(self, recipe, run, data, folder):
        self.recipe, self.run, self.folder = recipe, run, folder
        self.files = files_of(data)
        self.model = next(
            run / x for x in ("best", "last", ".") if (run / x / "task.json").exists()
        )
        self.test = self.files.get("test", self.files["val"])

    def num_steps(self):
        """Steps of the run."""
        lines = (self.run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return max(json.loads(line)["step"] for line in lines)

    def train(self, name, **settings):
        """Trains further with the settings of the recipe; the written directory."""
        own = recipe_settings(self.recipe, defaults=False, change={})
        rate = own.get("lr", 0.005) * _SHARE_OF_RATE
        own = {key: value for key, value in own.items() if key not in _LEFT_OUT}
        steps = max(1, int(_SHARE_OF_STEPS * self.num_steps()))
        arguments = {
            **own, "init_from": str(self.model), "max_steps": steps, "lr": rate, "warmup_steps": 0,
            "scheduler": "linear", "val_check_interval": steps, "work_dir": str(self.folder),
            "experiment_name": name, "logger": "none", "quiet": True, "precision": "float32",
            **settings,
        }  # fmt: skip
        task = arguments.pop("task")
        records = arguments.pop("train", str(self.files["train"]))
        return miniformer.train(records, val=str(self.files["val"]), task=task, **arguments).model


def quantized(kind, **options):
    """A form of `miniformer quantize`."""

    def make(source, out):
        miniformer.quantize(source.model, out, to=kind, **options)

    return make


def calibrated(kind):
    """`miniformer quantize --calibrate`, by records of train."""

    def make(source, out):
        miniformer.quantize(source.model, out, to=kind, calibrate=str(source.files["train"]))

    return make


def trained_for(kind):
    """`miniformer train --quantize_aware`, then `quantize`."""

    def make(source, out):
        directory = source.train(f"aware-{kind}", quantize_aware=kind)
        miniformer.quantize(directory, out, to=kind)

    return make


def pruned(heals=False, **options):
    """A form of `miniformer prune`, chosen by records of train; with `heals`, trained on them."""

    def make(source, out):
        if callable(options.get("remove")):
            arguments = {**options, "remove": options["remove"](source)}
        else:
            arguments = dict(options)
        if heals:
            steps = max(1, int(_SHARE_OF_STEPS * source.num_steps()))
            arguments |= {"heal": str(source.files["train"]), "steps": steps}
        if arguments.get("method") != "magnitude":  # which needs no records
            arguments["calibrate"] = str(source.files["train"])
        miniformer.prune(source.model, out, **arguments)

    return make


def half_of_layers(source):
    """Half of the layers of each stack."""
    return {"layers": max(1, miniformer.load(source.model).model.config.n_layers // 2)}


FORMS = {
    "bf16": quantized("bf16"),
    "int8": quantized("int8"),
    "int4": quantized("int4"),
    "int4, calibrated": calibrated("int4"),
    "int4, trained": trained_for("int4"),
    "half of ffn": pruned(remove={"ffn": 0.5}),
    "half of ffn, healed": pruned(remove={"ffn": 0.5}, heals=True),
    "half of layers": pruned(remove=half_of_layers),
    "half of layers, healed": pruned(remove=half_of_layers, heals=True),
    "50 % zeros, magnitude": pruned(sparsity=0.5, method="magnitude"),
    "50 % zeros, wanda": pruned(sparsity=0.5, method="wanda"),
    "50 % zeros, sparsegpt": pruned(sparsity=0.5, method="sparsegpt"),
    "2:4 zeros, magnitude": pruned(sparsity="2:4", method="magnitude"),
    "2:4 zeros, sparsegpt": pruned(sparsity="2:4", method="sparsegpt"),
}


def measure(source, names, rounds, tokens):
    """Rows of a table: the model itself, then its forms."""
    directories, seconds = {"model": source.model}, {"model": 0.0}
    for name in names:
        out = source.folder / re.sub(r"\W+", "-", name)
        started = time.perf_counter()
        FORMS[name](source, out)
        directories[name], seconds[name] = out, time.perf_counter() - started
        print(f"{name}: made in {seconds[name]:.0f} s", flush=True)
    result = miniformer.compare(
        list(directories.values()), str(source.test), rounds=rounds, tokens=tokens
    )
    print(result)
    first, rows = result.models[0], []
    for name, model in zip(directories, result.models, strict=True):
        change = model.difference
        rows.append(
            {
                "form": name,
                "seconds": round(seconds[name], 1),
                "megabytes": round(model.num_bytes / 1e6, 3),
                "bytes_ratio": round(model.num_bytes / first.num_bytes, 4),
                "loss": round(model.metrics["loss"], 6),
                "loss_ratio": round(model.metrics["loss"] / first.metrics["loss"], 6),
                "metric": round(model.metrics.get(result.metric, model.metrics["loss"]), 4),
                "interval": None
                if change is None
                else [round(change.low, 4), round(change.high, 4)],
                "first_ms": round(1000 * model.speed.first_seconds, 2),
                "speed": {str(size): round(x, 3) for size, x in model.speed.ratios.items()},
                "memory_mb": round(model.speed.memory / 1e6),
            }
        )
    return {
        "metric": result.metric,
        "records": result.num_records,
        "unit": result.unit,
        "rows": rows,
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe")
    parser.add_argument("run", type=Path, help="folder of the recipe's run")
    parser.add_argument("data", type=Path, help="folder with train, val and test files")
    parser.add_argument("--forms", nargs="+", choices=list(FORMS), default=list(FORMS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=32, help="that a generating model continues")
    parser.add_argument("--save", action="store_true", help=f"add to results/{RESULTS.name}")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    try:
        source = Source(given.recipe, given.run, given.data, folder)
        result = measure(source, given.forms, given.rounds, given.tokens)
    finally:
        shutil.rmtree(folder)
    print(json.dumps(result, indent=1))
    if given.save:
        saved = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        saved[given.recipe] = {"environment": environment(), **result}
        RESULTS.write_text(json.dumps(saved, indent=1) + "\n")


if __name__ == "__main__":
    main()
