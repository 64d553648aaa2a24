"""`miniformer prune`: a model without its least important parts."""

from __future__ import annotations

from typing import Any

from miniformer.compression.comparison.after import add_comparison_flag, print_comparison

DESCRIPTION = (
    "Remove the least important heads, feed-forward columns or layers of a model. The written "
    "directory is an ordinary one of a smaller model."
)


def add_arguments(parser: Any) -> None:
    """Adds the arguments."""
    parser.add_argument("directory", type=str, help="model directory, or the folder of a run")
    parser.add_argument("out", type=str, help="directory to write")
    parser.add_argument(
        "--remove",
        type=str,
        required=True,
        help="shares and numbers: heads=0.5,ffn=0.5,layers=2; for seq2seq also encoder_layers and "
        "decoder_layers",
    )
    parser.add_argument(
        "--data",
        type=str | None,
        default=None,
        help="labeled records: importance, the loss before and after, and a comparison of the "
        "models; without them heads and columns are chosen by their weights",
    )
    add_comparison_flag(parser)


def run(values: dict[str, Any]) -> int:
    """Prunes; returns the exit code."""
    from miniformer.compression.pruning.prune import prune

    print(prune(values["directory"], values["out"], remove=values["remove"], data=values["data"]))
    if values["data"] is not None and not values["no_compare"]:
        print_comparison(values["directory"], values["out"], values["data"])
    return 0
