"""`miniformer compare`: a comparison of models on the same data."""

from __future__ import annotations

from typing import Any

from miniformer.commands.models import add_field_flags, pop_fields, progress_bar

DESCRIPTION = (
    "Compare models for the same task: size, metric with a paired 95 % interval, time to the first "
    "result, speed at batch 1 and 16, memory. Each model works in its own process, in turns."
)


def add_arguments(parser: Any) -> None:
    """Adds the arguments."""
    parser.add_argument(
        "directories",
        metavar="DIRECTORY",
        type=str,
        nargs="+",
        help="two or more model directories or run folders; the first is compared with the others",
    )
    parser.add_argument("--data", type=str, required=True, help="file of labeled records")
    parser.add_argument(
        "--tokens", type=int, default=32, help="tokens to generate for each prompt or source"
    )
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each speed")
    parser.add_argument(
        "--threads", type=int, default=0, help="CPU threads of each model; 0: as torch chooses"
    )
    parser.add_argument(
        "--resamples", type=int, default=1000, help="bootstrap resamples of the interval"
    )
    parser.add_argument(
        "--json", action="store_true", help="print all results as JSON instead of a table"
    )
    add_field_flags(parser)


def run(values: dict[str, Any]) -> int:
    """Compares; returns the exit code."""
    fields = pop_fields(values)
    from miniformer.compression.comparison.compare import compare

    with progress_bar("evaluating") as progress:
        comparison = compare(
            values["directories"],
            values["data"],
            tokens=values["tokens"],
            rounds=values["rounds"],
            threads=values["threads"],
            num_resamples=values["resamples"],
            progress=progress,
            **fields,
        )
    print(comparison.to_json() if values["json"] else comparison)
    return 0
