"""Early exits of a classifier, calibrated and tested on redrawn splits of the same records.

    python benchmarks/exits.py RECIPE DATA [--layers 4] [--model DIR] [--max_loss 0.01]
        [--confidence 0.95] [--calibration 0.5] [--splits 20] [--rounds 5] [--save]

RECIPE is the name of a file in recipes/, DATA the folder with its train, val and test files. The
recipe is trained with `--early_exit` and `--layers` layers; `--model` names a directory that is
trained already. The model is that of the last step, and the records are those of val and test. For
each split, `calibrate_exit` chooses the threshold from a random share of them, and the others are
predicted with it. A record loses if all layers have its class right and its exit has it wrong; the
bound holds in a split if the share of losses is at most `--max_loss`. The speed is that of
`predict` on all records with the last threshold, in turns with all layers.
"""

import argparse
import json
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import miniformer
from environment import environment
from miniformer import TrainConfig
from miniformer.compression.exits.calibrate import calibrate_exit
from miniformer.config import UserError
from quality import files_of, settings_of

RESULTS = Path(__file__).parent / "results" / "exits.json"


def train(recipe, data, layers, folder):
    """The directory of the last step of the recipe with exits."""
    change = {"model_config": {"n_layers": layers}, "early_exit": {}}
    settings = settings_of(recipe, data, seed=0, defaults=False, change=change)
    from miniformer.training.run import train as run

    run(TrainConfig.from_dict({**settings, "work_dir": str(folder)}))
    return folder / "run" / "last"


def read_records(files):
    """The records of JSON lines files."""
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    return [json.loads(line) for line in lines if line.strip()]


def labels(pipeline, records):
    """The predicted label of each record."""
    inputs = [record["input"] for record in records]
    return [str(row["label"]) for row in pipeline.predict_all(inputs, truncate=True)]


def split_row(directory, records, expected, share, limits, seed):
    """One split: threshold, layers, losses and accuracies on the records of the test part."""
    order = list(range(len(records)))
    random.Random(seed).shuffle(order)
    count = round(share * len(order))
    calibration, test = order[:count], order[count:]
    try:
        stored = calibrate_exit(directory, [records[i] for i in calibration], **limits)
    except UserError as error:
        if "no threshold" not in str(error):
            raise
        return {"threshold": None, "layers": 1.0, "loss": 0.0, "accuracy_change": 0.0}
    pipeline = miniformer.load(directory)
    predicted = labels(pipeline, [records[i] for i in test])
    policy = pipeline.model.exit_policy
    truth = [str(records[i]["label"]) for i in test]
    full = [expected[i] for i in test]
    right = [a == b for a, b in zip(full, truth, strict=True)]
    exits = [a == b for a, b in zip(predicted, truth, strict=True)]
    return {
        "threshold": round(stored.threshold, 4),
        "layers": round(policy.num_layers / policy.num_records / stored.n_layers, 4),
        "loss": round(statistics.mean(a and not b for a, b in zip(right, exits, strict=True)), 5),
        "accuracy_change": round(statistics.mean(exits) - statistics.mean(right), 5),
    }


def speed_of(directory, records, plain, rounds):
    """Records/s with exits relative to all layers, median of the ratios of the rounds."""
    pipelines = {"exits": miniformer.load(directory), "plain": plain}
    ratios = []
    for turn in range(rounds + 1):
        seconds = {}
        for name in sorted(pipelines, reverse=bool(turn % 2)):
            started = time.perf_counter()
            labels(pipelines[name], records)
            seconds[name] = time.perf_counter() - started
        if turn:
            ratios.append(seconds["plain"] / seconds["exits"])
    return statistics.median(ratios)


def measure(options):
    """The result of a model."""
    files = files_of(options.data)
    records = read_records([files[name] for name in ("val", "test") if name in files])
    limits = {"max_loss": options.max_loss, "confidence": options.confidence}
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "model"
        trained = options.model or train(options.recipe, options.data, options.layers, Path(folder))
        shutil.copytree(trained, directory)
        (directory / "early_exit.json").unlink(missing_ok=True)
        plain = miniformer.load(directory)
        expected = labels(plain, records)
        rows = [
            split_row(directory, records, expected, options.calibration, limits, seed)
            for seed in range(options.splits)
        ]
        speed = None
        if (directory / "early_exit.json").exists():
            speed = round(speed_of(directory, records, plain, options.rounds), 3)
        config = plain.model.config
    is_right = [a == str(b["label"]) for a, b in zip(expected, records, strict=True)]
    return {
        "environment": environment(),
        "model": {"d_model": config.d_model, "n_layers": config.n_layers},
        "records": len(records),
        "accuracy": round(statistics.mean(is_right), 4),
        **limits,
        "calibration": options.calibration,
        "splits": len(rows),
        "with_threshold": sum(row["threshold"] is not None for row in rows),
        "within_bound": sum(row["loss"] <= options.max_loss for row in rows),
        "layers": round(statistics.mean(row["layers"] for row in rows), 3),
        "loss": round(statistics.mean(row["loss"] for row in rows), 5),
        "accuracy_change": round(statistics.mean(row["accuracy_change"] for row in rows), 5),
        "speed": speed,
        "rows": rows,
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="name of a recipe of classification")
    parser.add_argument("data", type=Path, help="folder with its data")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--model", type=Path, help="a trained directory of the recipe")
    parser.add_argument("--max_loss", type=float, default=0.01)
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--calibration", type=float, default=0.5, help="share of the records")
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--save", action="store_true", help=f"add to results/{RESULTS.name}")
    options = parser.parse_args()
    result = measure(options)
    for row in result["rows"]:
        print(json.dumps(row))
    summary = {key: value for key, value in result.items() if key not in ("rows", "environment")}
    print(json.dumps(summary))
    if options.save:
        saved = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
        text = json.dumps({**saved, options.recipe: result}, indent=1)
        RESULTS.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
