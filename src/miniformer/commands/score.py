"""`miniformer score`: perplexity of a trained language model on files."""

from __future__ import annotations

import json
from typing import Any

from miniformer.commands.models import add_adapter_flag
from miniformer.config.command_line import resolve_model

DESCRIPTION = (
    "Print loss, perplexity, bits per byte and perplexity per word of texts as a JSON object."
)


def add_arguments(parser: Any) -> None:
    """Adds the arguments."""
    parser.add_argument(
        "directory", type=str, help="model directory of a language model, or the folder of its run"
    )
    parser.add_argument("files", type=str, nargs="+", help="texts in the formats of train")
    parser.add_argument(
        "--stride",
        type=int,
        help="tokens scored per window, for texts longer than the context; fewer tokens have a "
        "longer context and take longer; null: half of max_seq_len",
    )
    add_adapter_flag(parser)


def run(values: dict[str, Any]) -> int:
    """Scores; returns the exit code."""
    from rich.console import Console  # imports take seconds

    from miniformer.checkpoint.pipeline import load
    from miniformer.utils.streams import progress_bars

    pipeline = load(resolve_model(values["directory"]), adapter=values["adapter"])
    with progress_bars(Console(stderr=True)) as progress:
        metrics = pipeline.perplexity(
            values["files"],
            stride=values["stride"],
            progress=lambda done, total: progress("scoring", done, total),
        )
    print(json.dumps({name: round(value, 4) for name, value in metrics.items()}))
    return 0
