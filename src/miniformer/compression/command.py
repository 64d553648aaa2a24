"""`miniformer quantize`: a model directory in fewer bits."""

from __future__ import annotations

from typing import Any

from miniformer.commands.models import add_field_flags, pop_fields
from miniformer.compression.comparison.after import add_comparison_flag, print_comparison

DESCRIPTION = (
    "Store a model in fewer bits. The written directory stands alone, and every command reads it."
)


def add_arguments(parser: Any) -> None:
    """Adds the arguments."""
    parser.add_argument("directory", type=str, help="model directory, or the folder of a run")
    parser.add_argument("out", type=str, help="directory to write")
    parser.add_argument(
        "--to",
        type=str,
        required=True,
        help="int8, int4 (embeddings and the head of a vocabulary int8), bf16 or fp16",
    )
    parser.add_argument(
        "--group",
        type=str,
        default="32",
        help="of int8 and int4: weights of a row with one scale: 32, 64, 128 or channel, a whole "
        "row; the decoding kernels read groups of 32",
    )
    parser.add_argument(
        "--calibrate",
        type=str | None,
        default=None,
        help="labeled records, such as those of training, at least 32; int8 and int4 are rounded "
        "so that the outputs for them change least",
    )
    parser.add_argument(
        "--method",
        type=str | None,
        default=None,
        help="gptq, the default with --calibrate, or none, the default without",
    )
    parser.add_argument(
        "--data",
        type=str | None,
        default=None,
        help="labeled records; their loss before and after is printed, and a comparison of the "
        "models",
    )
    parser.add_argument(
        "--budget",
        type=str | None,
        default=None,
        help="largest increase of the loss on --data, such as 0.5%%; single matrices get more bits "
        "until it holds",
    )
    add_comparison_flag(parser)
    add_field_flags(parser)


def run(values: dict[str, Any]) -> int:
    """Quantizes; returns the exit code."""
    fields = pop_fields(values)
    from miniformer.compression.quantize import quantize

    directory, out = values.pop("directory"), values.pop("out")
    compares = not values.pop("no_compare") and values["data"] is not None
    print(quantize(directory, out, **values, **fields))
    if compares:
        print_comparison(directory, out, values["data"], **fields)
    return 0
