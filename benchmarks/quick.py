"""Short rounds of the benchmarks that have peers, in about ten minutes on two cores.

    python benchmarks/quick.py [PART...] [--save]

Each part is a benchmark script with few rounds, which measures the peers that are installed, those
of the extra `bench`: transformers, llama_cpp with gguf, ctranslate2, peft. `--save` writes the
parts into `results/<processor>.json`, where other parts of an earlier run stay, and the page
`docs/benchmarks.md`. Ratios of so few rounds differ by some percent from run to run.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from environment import environment
from quick_page import PAGE, RESULTS, page

PEERS = ("transformers", "llama-cpp-python", "gguf", "ctranslate2", "peft")
LIMIT_S = 600
# Script and arguments of each part, longest first.
PARTS = {
    "training_step": (
        "train_step.py",
        ("--dtype", "float32", "--rounds", "3", "--batch-size", "4"),
    ),
    "decoding": ("generation.py", ("--rounds", "1", "--batched_only")),
    "adapters": ("adapters.py", ("--rounds", "2", "--batch", "4")),
    "beams": ("beams.py", ("--rounds", "2")),
    "trainer": (
        "trainer_overhead.py",
        ("--sizes", "1M", "--steps", "100", "--validations", "1", "--optimizers", "muon"),
    ),
}


def result_path(cpu):
    """The file of results of a processor."""
    return RESULTS / f"{re.sub('[^a-z0-9]+', '-', cpu.lower()).strip('-')}.json"


def measure(script, arguments):
    """Result of a script, which runs in a process of its own, with its seconds."""
    start_time = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        command = [sys.executable, Path(__file__).parent / script, *arguments, "--out", out]
        subprocess.run(command, check=True, timeout=LIMIT_S, stdout=sys.stderr)
        result = json.loads(out.read_text(encoding="utf-8"))
    seconds = round(time.monotonic() - start_time)
    return {"arguments": [*arguments], "seconds": seconds, "result": result}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all")
    parser.add_argument("--list", action="store_true", help="print the commands and run none")
    parser.add_argument(
        "--save", action="store_true", help="write results/<processor>.json and the page"
    )
    options = parser.parse_args()
    unknown = sorted(set(options.parts) - PARTS.keys())
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}; the parts are {', '.join(PARTS)}")
    stored = {"environment": environment(*PEERS), "parts": {}}
    path = result_path(stored["environment"]["cpu"])
    if path.exists():
        stored["parts"] = json.loads(path.read_text(encoding="utf-8"))["parts"]
    for name in options.parts or PARTS:
        script, arguments = PARTS[name]
        if options.list:
            print(name, f"benchmarks/{script}", *arguments)
            continue
        stored["parts"][name] = measure(script, arguments)
        print(f"{name}: {stored['parts'][name]['seconds']} s", flush=True)
        if options.save:
            path.write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")
            PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
