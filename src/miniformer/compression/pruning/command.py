"""`miniformer prune`: a model without its least important parts, or with zeros."""

from __future__ import annotations

from typing import Any

from miniformer.commands.models import add_field_flags, pop_fields
from miniformer.compression.comparison.after import add_comparison_flag, print_comparison

DESCRIPTION = (
    "Remove the least important heads, feed-forward columns or layers of a model, or set its least "
    "important weights to zero. The written directory is an ordinary one."
)


def add_arguments(parser: Any) -> None:
    """Adds the arguments."""
    parser.add_argument("directory", type=str, help="model directory, or the folder of a run")
    parser.add_argument("out", type=str, help="directory to write")
    parser.add_argument(
        "--remove",
        type=str | None,
        default=None,
        help="parts to remove, as shares and numbers: heads=0.5,ffn=0.5,layers=2; for seq2seq also "
        "encoder_layers and decoder_layers",
    )
    parser.add_argument(
        "--sparsity",
        type=str | None,
        default=None,
        help="weights of the linear layers within the layers that become zero: a share such as "
        "0.5, or 2:4, two of each four inputs of a row",
    )
    parser.add_argument(
        "--method",
        type=str | None,
        default=None,
        help="of --sparsity: magnitude, the default without records, wanda, or sparsegpt, the "
        "default with records",
    )
    parser.add_argument(
        "--calibrate",
        type=str | None,
        default=None,
        help="labeled records, such as those of training, by which parts and weights are chosen; "
        "default: those of --data; without both, heads, columns and zeros are chosen by weights",
    )
    parser.add_argument(
        "--data",
        type=str | None,
        default=None,
        help="labeled records; their loss before and after is printed, and a comparison of the "
        "models",
    )
    parser.add_argument(
        "--heal",
        type=str | None,
        default=None,
        help="labeled records, such as those of training, on which the pruned model is trained by "
        "distillation from the model; zeros stay zero",
    )
    parser.add_argument(
        "--steps",
        type=int | None,
        default=None,
        help="optimizer steps of --heal; default: one pass over its records",
    )
    add_comparison_flag(parser)
    add_field_flags(parser)


def run(values: dict[str, Any]) -> int:
    """Prunes; returns the exit code."""
    fields = pop_fields(values)
    from miniformer.compression.pruning.prune import prune
    from miniformer.utils.streams import make_console

    directory, out = values.pop("directory"), values.pop("out")
    compares = not values.pop("no_compare") and values["data"] is not None
    print(prune(directory, out, **values, **fields, console=make_console()))
    if compares:
        print_comparison(directory, out, values["data"], **fields)
    return 0
