"""Quality of exported ONNX folders: BLEU, accuracy and loss of the model and of its graphs.

    python benchmarks/export_quality.py DATA [--minutes 10] [--translator DIR] [--classifier DIR]
        [--save]

DATA is a folder with multi30k_ende/ and agnews/ (train.jsonl, val.jsonl, test.jsonl each). A small
translator is trained for `--minutes`, a classifier for a third of that, unless model directories
are given. Each goes out as ONNX with the weights float32, int8 and int4. `run.py` of each folder
translates the test sources with 5 beams and classifies the test texts; the model itself does the
same. Losses are those of `export --data` on the test records.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import miniformer
from environment import environment
from miniformer.exporters.onnx.runner.run import Model

RESULTS = Path(__file__).parent / "results" / "export_quality.json"
WEIGHTS = ("float32", "int8", "int4")
SETTINGS = {
    "translator": {
        "task": "seq2seq", "task_config": {"label_smoothing": 0.1}, "lr": 0.003,
        "model_config": {"vocab_size": 4000, "d_model": 128, "n_heads": 4, "n_layers": 1,
                         "max_seq_len": 128},
    },
    "classifier": {
        "task": "classification",
        "model_config": {"vocab_size": 8000, "d_model": 64, "n_heads": 4, "n_layers": 1},
    },
}  # fmt: skip
FOLDERS = {"translator": "multi30k_ende", "classifier": "agnews"}
BEAMS = {"num_beams": 5, "max_new_tokens": 60}


def records_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def train(name, data, minutes, folder):
    """Trains a model; returns its directory."""
    result = miniformer.train(
        str(data / "train.jsonl"), val=str(data / "val.jsonl"), max_time=f"{60 * minutes:.0f}s",
        work_dir=str(folder), experiment_name=name, logger="none", **SETTINGS[name],
    )  # fmt: skip
    return Path(result.model)


def measure_translator(model, records):
    """BLEU and texts of a function of sources."""
    import sacrebleu

    texts = model([record["source"] for record in records])
    references = [[record["target"] for record in records]]
    return round(sacrebleu.corpus_bleu(texts, references).score, 3), texts


def measure_classifier(model, records):
    """Accuracy and labels of a function of texts."""
    labels = [answer["label"] for answer in model([record["input"] for record in records])]
    hits = sum(str(x) == str(r["label"]) for x, r in zip(labels, records, strict=True))
    return round(hits / len(records), 4), labels


def measure(name, directory, data, folder, count):
    """Metrics of a model and of its exported folders."""
    records = records_of(data / "test.jsonl")[:count]
    test = folder / f"{name}.jsonl"
    test.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    pipeline = miniformer.load(directory)
    if name == "translator":
        metric, expected = measure_translator(lambda x: pipeline.generate(x, **BEAMS), records)
    else:
        metric, expected = measure_classifier(pipeline.predict, records)
    results = {"records": len(records), "model": metric}
    for weights in WEIGHTS:
        out, start_time = folder / f"{name}-{weights}", time.perf_counter()
        miniformer.export(directory, out, to="onnx", weights=weights, data=str(test))
        seconds = time.perf_counter() - start_time
        runner = Model(out)
        if name == "translator":
            metric, answers = measure_translator(lambda x, r=runner: r.translate(x, **BEAMS),
                                                 records)  # fmt: skip
        else:
            metric, answers = measure_classifier(runner.classify, records)
        losses = json.loads((out / "export.json").read_text())["losses"]
        same = sum(x == y for x, y in zip(answers, expected, strict=True))
        results[weights] = {
            "metric": metric,
            "equal_answers": same,
            "loss": round(losses[weights], 5),
            "loss_change_percent": round(100 * (losses[weights] / losses["float32"] - 1), 3),
            "megabytes": round(sum(x.stat().st_size for x in out.glob("*.onnx")) / 1e6, 2),
            "seconds": round(seconds, 1),
        }
        print(name, weights, json.dumps(results[weights]), flush=True)
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with multi30k_ende/ and agnews/")
    parser.add_argument("--minutes", type=float, default=10, help="training of the translator")
    parser.add_argument("--translator", type=Path, help="a trained model directory")
    parser.add_argument("--classifier", type=Path, help="a trained model directory")
    parser.add_argument("--records", type=int, help="test records; all of them by default")
    parser.add_argument("--save", action="store_true", help="write results/export_quality.json")
    args = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, minutes in (("translator", args.minutes), ("classifier", args.minutes / 3)):
            data = args.data / FOLDERS[name]
            directory = vars(args)[name] or train(name, data, minutes, Path(folder))
            results[name] = measure(name, directory, data, Path(folder), args.records)
    print(json.dumps(results, indent=2))
    if args.save:
        peers = ("onnxruntime", "onnx", "numpy", "tokenizers", "sacrebleu")
        stored = {"environment": environment(*peers), **results}
        RESULTS.write_text(json.dumps(stored, indent=2) + "\n")


if __name__ == "__main__":
    main()
