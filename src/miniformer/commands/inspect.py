"""`miniformer inspect`: what the layers of a model compute for one input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from miniformer.commands.models import add_adapter_flag, load_pipeline, round_numbers
from miniformer.config import UserError
from miniformer.config.command_line import read_utf8_stdin

DESCRIPTION = (
    "Print the tokens of an input with their log-probabilities, the predictions of each layer "
    "(logit lens), and the strongest attention."
)


def add_arguments(parser: Any) -> None:
    """Adds the arguments."""
    parser.add_argument("directory", type=str, help="model directory, or the folder of a run")
    parser.add_argument(
        "input",
        type=str,
        help="one input: a text, or JSON where inputs are not texts; '-' reads standard input",
    )
    parser.add_argument(
        "--target", type=str, help="target of a seq2seq model; null: the one that it generates"
    )
    parser.add_argument("--top_k", type=int, default=5, help="predictions of each row in JSON")
    parser.add_argument(
        "--truncate", action="store_true", help="truncate an input that is too long"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument("--html", type=str, help="also write a page with plots to this file")
    add_adapter_flag(parser)


def run(values: dict[str, Any]) -> int:
    """Inspects; returns the exit code."""
    if values["html"] is not None and Path(values["html"]).is_dir():
        raise UserError(f"html: {values['html']} is a directory; name a file")
    text = read_utf8_stdin() if values["input"] == "-" else values["input"]
    pipeline = load_pipeline(values["directory"], None, values["adapter"])
    from miniformer.commands.inputs import argument_inputs
    from miniformer.inspection.page import write_inspection

    (item,) = argument_inputs([text], pipeline.task)
    options = {"top_k": values["top_k"], "truncate": values["truncate"]}
    inspection = pipeline.inspect(item.value, values["target"], **options)
    if values["html"] is not None:
        write_inspection(Path(values["html"]), inspection, values["directory"])
    if values["json"]:
        print(json.dumps(round_numbers(inspection.to_json()), ensure_ascii=False))
    else:
        print(inspection)
    return 0
