"""`miniformer calibrate-exit`: the threshold at which records leave a classifier early."""

from __future__ import annotations

from typing import Any

from miniformer.commands.models import add_field_flags, pop_fields
from miniformer.compression.comparison.after import add_comparison_flag, print_exit_comparison
from miniformer.config import UserError

DESCRIPTION = (
    "Choose the confidence at which records leave a classifier after fewer layers, so that few of "
    "them lose their right class. It is written to early_exit.json of the model; predict and "
    "evaluate use it."
)


def add_arguments(parser: Any) -> None:
    """Adds the arguments."""
    parser.add_argument("directory", type=str, help="model directory, or the folder of a run")
    parser.add_argument("file", type=str, help="labeled records that training has not seen")
    parser.add_argument(
        "--max_loss",
        type=str,
        default="1%",
        help="largest share of records that all layers classify right and the exit wrong",
    )
    parser.add_argument(
        "--confidence",
        type=str,
        default="95%",
        help="probability with which the bound holds, over draws of the records",
    )
    parser.add_argument(
        "--data",
        type=str | None,
        default=None,
        help="other labeled records, on which the model is compared with all of its layers",
    )
    add_comparison_flag(parser)
    add_field_flags(parser)


def run(values: dict[str, Any]) -> int:
    """Calibrates; returns the exit code."""
    fields = pop_fields(values)
    limits = {name: parse_share(name, values[name]) for name in ("max_loss", "confidence")}
    from miniformer.compression.exits.calibrate import calibrate_exit

    stored = calibrate_exit(values["directory"], values["file"], **limits, **fields)
    print(
        f"threshold {stored.threshold:.4f}: with confidence {100 * stored.confidence:g} % at most "
        f"{100 * stored.max_loss:g} % of records lose a right class\n"
        f"of these {stored.num_records:,} records {100 * stored.loss:.2f} % do, with "
        f"{stored.mean_layers:.2f} of {stored.n_layers} layers on average"
    )
    if values["data"] is not None and not values["no_compare"]:
        print_exit_comparison(values["directory"], values["data"], **fields)
    return 0


def parse_share(name: str, text: str) -> float:
    """A share such as 1% or 0.01.

    Raises:
        UserError: it is no number.
    """
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise UserError(f"{name} must be a share such as 1% or 0.01, not {text!r}") from None
