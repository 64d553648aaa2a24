"""A measured process with one model.

    python -m miniformer.compression.comparison.measured_process DIRECTORY THREADS

It reads a JSON object from each line of its input and answers with one: the seconds that the model
took for the inputs, and the largest memory of the process so far.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from miniformer.config import UserError


def main(directory: str, threads: int) -> None:
    """Loads the model, prints its memory, and measures the work of each line of the input."""
    import torch

    from miniformer.checkpoint.pipeline import load

    if threads:
        torch.set_num_threads(threads)
    pipeline = load(directory)
    print(json.dumps({"memory": peak_memory()}), flush=True)
    for line in sys.stdin:
        work = json.loads(line)
        start_time = time.perf_counter()
        run(pipeline, work["inputs"], work["tokens"])
        seconds = time.perf_counter() - start_time
        print(json.dumps({"seconds": seconds, "memory": peak_memory()}), flush=True)


def run(pipeline: Any, inputs: list[Any], tokens: int) -> None:
    """Generates, predicts or embeds in one batch.

    Args:
        pipeline: the model.
        inputs: prompts, or inputs of `predict`.
        tokens: tokens to generate for each prompt; 0: predict.
    """
    if tokens:
        pipeline.generate(
            inputs, max_new_tokens=tokens, min_new_tokens=tokens, temperature=0.0, truncate=True,
            num_beams=1, num_return_sequences=1, stop_strings=None,
        )  # fmt: skip
    elif pipeline.task.name in ("masked_lm", "embedding"):
        pipeline.embed(inputs, truncate=True)
    else:
        pipeline.predict_all(inputs, batch_size=len(inputs), truncate=True)


def peak_memory() -> int:
    """Largest memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss includes the memory of the parent before its exec
        fields = dict(x.split(":", 1) for x in status.read_text(encoding="utf-8").splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    try:
        main(sys.argv[1], int(sys.argv[2]))
    except UserError as error:
        sys.exit(" ".join(str(error).split()))  # `speeds` reads the last line
