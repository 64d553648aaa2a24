"""`miniformer export-bench`: sizes and times of a model and of its exported files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from miniformer.config import UserError

DESCRIPTION = (
    "Measure models and exported files, each in its own process: size, memory, time from the "
    "start of the process to the first token, time of a token, time of a classification."
)


def add_arguments(parser: Any) -> None:
    """Adds the arguments."""
    parser.add_argument(
        "paths",
        metavar="PATH",
        type=str,
        nargs="+",
        help="folders of export --to onnx, pt2, aoti or openvino, .gguf files, model directories",
    )
    parser.add_argument(
        "--rounds", metavar="N", type=int, default=3, help="processes of each; medians are shown"
    )
    parser.add_argument(
        "--prompt_tokens", metavar="N", type=int, default=16, help="length of the input"
    )
    parser.add_argument("--tokens", metavar="N", type=int, default=32, help="tokens to generate")
    parser.add_argument("--threads", metavar="N", type=int, default=0, help="0: as many as cores")
    parser.add_argument(
        "--json", metavar="FILE", type=str | None, default=None, help="file for the results"
    )


def run(values: dict[str, Any]) -> int:
    """Measures; returns the exit code."""
    from miniformer.exporters.bench.measure import Workload, format_table, measure_all
    from miniformer.utils.atomic import write_json

    for name in ("rounds", "prompt_tokens", "tokens"):
        if values[name] < 1:
            raise UserError(f"{name} must be at least 1, not {values[name]}")
    workload = Workload(values["prompt_tokens"], values["tokens"], values["threads"])
    results = measure_all(values["paths"], workload, values["rounds"])
    print(format_table(results))
    if values["json"] is not None:
        write_json(Path(values["json"]), results)
    return 0
