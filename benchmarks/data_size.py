"""Memory of training on a large JSON Lines file compared with a small one.

    python benchmarks/data_size.py --save

Both files are generated, with records of the same kind. Each is trained on in a separate process,
for the same number of steps, by the command that users run. `peak_mb` is the peak resident set of
the process. The indexing speed is measured, too. Only the index grows with the file, by some bytes
per record: `bytes_a_record` is the difference of the peaks divided by that of the record counts.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from environment import environment

TRAIN = """
import json, resource, sys
from miniformer import trainer
code = trainer.main(sys.argv[1:])
print("PEAK", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(code)
"""
INDEX = """
import sys, time
from miniformer.data.reading.records import JSONLinesDataset
path, cache = sys.argv[1:]
start_time = time.perf_counter()
records = JSONLinesDataset(path, cache_dir=cache)
first = time.perf_counter() - start_time
start_time = time.perf_counter()
JSONLinesDataset(path, cache_dir=cache)
print(len(records), first, time.perf_counter() - start_time)
"""


def generate(path, megabytes):
    """Writes a file of records of about 500 bytes, by repetition of a block."""
    vocabulary = [
        f"{a}{b}" for a in ("ka", "lo", "mi", "ne", "ru") for b in ("ta", "so", "v", "n", "")
    ]
    rng = random.Random(0)
    block = "".join(
        json.dumps({"text": " ".join(rng.choices(vocabulary, k=rng.randint(60, 160)))}) + "\n"
        for _ in range(2000)
    ).encode()
    with path.open("wb") as file:
        while file.tell() < megabytes * 1e6:
            file.write(block)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--large_mb", type=int, default=2000)
    parser.add_argument("--small_mb", type=int, default=2)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--num_workers", type=int, default=0)
    parser.add_argument("--save", action="store_true", help="write results/data_size.json")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for name, size in (("small", options.small_mb), ("large", options.large_mb)):
            path = work / f"{name}.jsonl"
            generate(path, size)
            command = [sys.executable, "-c", INDEX, str(path), str(work / "cache")]
            process = subprocess.run(command, capture_output=True, text=True, check=True)
            count, first, again = map(float, process.stdout.split())
            model = {
                "vocab_size": 2000,
                "d_model": 128,
                "n_heads": 4,
                "n_layers": 4,
                "max_seq_len": 128,
            }
            command = [
                sys.executable, "-c", TRAIN, "--train_path", str(path), "--tokenizer", "bpe",
                "--model_config", json.dumps(model), "--max_steps", str(options.steps),
                "--logger", "none", "--work_dir", str(work / "runs"),
                "--num_workers", str(options.num_workers),
            ]  # fmt: skip
            start_time = time.perf_counter()
            process = subprocess.run(command, capture_output=True, text=True, check=True)
            row = {
                "file_mb": round(path.stat().st_size / 1e6),
                "records": int(count),
                "index_mb_per_s": round(path.stat().st_size / 1e6 / first),
                "index_again_s": round(again, 3),
                "peak_mb": round(int(re.findall(r"PEAK (\d+)", process.stdout)[0]) / 1024),
                "seconds": round(time.perf_counter() - start_time, 1),
                "told": re.findall(r"trained on [\d,]+ tokens.*", process.stdout)[0],
            }
            rows.append(row)
            print(json.dumps(row), flush=True)
            path.unlink()
    more = rows[1]["peak_mb"] - rows[0]["peak_mb"]
    records = rows[1]["records"] - rows[0]["records"]
    per_record = round(more * 1e6 / records, 1) if records else None
    print(f"the large file takes {more} MB more, {per_record} bytes per record")
    if options.save:
        result = {
            "environment": environment(),
            "steps": options.steps,
            "more_mb": more,
            "bytes_a_record": per_record,
            "rows": rows,
        }
        path = Path(__file__).parent / "results" / "data_size.json"
        path.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
