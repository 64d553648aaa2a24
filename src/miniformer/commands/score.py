"""`miniformer score`: how likely the texts of a file are to a trained language model."""

from __future__ import annotations

import json
from typing import Any

from miniformer.config.command_line import command_parser


def add_score_command(commands: Any) -> None:
    """Adds the subcommand."""
    parser = command_parser(
        "Loss, perplexity, bits per byte and perplexity per word of texts, as one JSON object."
    )
    parser.add_argument("directory", type=str, help="model directory of a language model")
    parser.add_argument("files", type=str, nargs="+", help="texts, as train takes them")
    parser.add_argument(
        "--stride",
        type=int,
        help="tokens that a window scores, of texts longer than the model reads; fewer have more "
        "before them, and take longer (default: half of max_seq_len)",
    )
    commands.add_subcommand("score", parser, help="perplexity of a language model on a file")


def run_score(values: dict[str, Any]) -> int:
    """Runs the subcommand."""
    from rich.console import Console  # only now: these take seconds to import

    from miniformer.checkpoint.pipeline import load
    from miniformer.training.callbacks.progress import progress_bars

    pipeline = load(values["directory"])
    with progress_bars(Console(stderr=True)) as progress:
        found = pipeline.perplexity(
            values["files"],
            stride=values["stride"],
            progress=lambda done, all_: progress("scoring", done, all_),
        )
    print(json.dumps({name: round(value, 4) for name, value in found.items()}))
    return 0
