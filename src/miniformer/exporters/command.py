"""`miniformer export`: a model as files of another program."""

from __future__ import annotations

from typing import Any

from miniformer import registry
from miniformer.config import UserError

DESCRIPTION = "Write a model for another program, such as onnxruntime or llama.cpp."
_OPTION_FLAGS = ("family", "weights", "data")  # options of several destinations, as flags


def add_arguments(parser: Any) -> None:
    """Adds the arguments."""
    parser.add_argument(
        "directory", type=str, nargs="?", help="model directory, or the folder of a run"
    )
    parser.add_argument("out", type=str, nargs="?", help="directory or file to write")
    known = ", ".join(registry.names("exporter"))
    parser.add_argument("--to", type=str, default="hf", help=f"destination: {known}")
    parser.add_argument(
        "--list", action="store_true", help="show the destinations and what each needs"
    )
    parser.add_argument(
        "--weights", type=str | None, default=None, help="type of the weights, such as int8"
    )
    parser.add_argument(
        "--data",
        type=str | None,
        default=None,
        help="file of records: the loss on it before and after rounding is kept in export.json",
    )
    parser.add_argument(
        "--family", type=str | None, default=None, help="for hf: model_type to write, such as llama"
    )
    parser.add_argument(
        "--no-verify", action="store_true", help="do not run what was written to compare it"
    )
    parser.add_argument(
        "--options", type=dict, default={}, help='further options, such as {"opset": 20}'
    )


def run(values: dict[str, Any]) -> int:
    """Exports; returns the exit code."""
    if values["list"]:
        from miniformer.exporters.listing import list_destinations

        print(list_destinations())
        return 0
    for name in ("directory", "out"):
        if values[name] is None:
            raise UserError(f"{name.upper()} is missing: miniformer export DIRECTORY OUT --to NAME")
    options = dict(values["options"])
    options |= {name: values[name] for name in _OPTION_FLAGS if values[name] is not None}
    if values["no_verify"]:
        options["verify"] = False
    registry.get("exporter", values["to"])  # an unknown name is an error before torch is imported
    from miniformer.exporters.api import export

    print(export(values["directory"], values["out"], to=values["to"], **options))
    return 0
