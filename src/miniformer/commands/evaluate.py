"""`miniformer evaluate`: metrics of a model on a file, with intervals, and a report."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from miniformer.commands.models import (
    add_adapter_flag,
    add_field_flags,
    load_pipeline,
    pop_fields,
    print_exits,
    progress_bar,
    round_numbers,
)
from miniformer.commands.outputs import check_output
from miniformer.config import UserError
from miniformer.config.command_line import resolve_model

DESCRIPTION = (
    "Evaluate a model on labeled records: metrics with 95 % intervals, class metrics, "
    "calibration, and the worst records."
)


def add_arguments(parser: Any) -> None:
    """Adds the arguments."""
    parser.add_argument("directory", type=str, help="model directory, or the folder of a run")
    parser.add_argument("files", type=str, nargs="+", help="labeled data in the formats of train")
    parser.add_argument("--by", type=str, help="field of the records; metrics of each value of it")
    parser.add_argument(
        "--against", type=str, help="directory of another model, for paired tests of the difference"
    )
    parser.add_argument(
        "--out",
        type=str,
        help="HTML report to write; predictions are written beside it, as .jsonl",
    )
    parser.add_argument(
        "--predictions", type=str, help="JSON lines to write: the result and fields of each record"
    )
    parser.add_argument(
        "--json", action="store_true", help="print all results as JSON instead of tables"
    )
    parser.add_argument(
        "--batch_size",
        type=int,
        help="mean examples per batch; null: that of training, which gives the metrics of its test",
    )
    parser.add_argument(
        "--weight_dtype",
        type=str,
        default="float32",
        help="type of weights on a CPU: float32, stored (that of the model directory), bf16, int8 "
        "or int4; all but float32 round the inputs of products, too",
    )
    parser.add_argument("--threads", type=int, help="CPU threads; null: those that torch chooses")
    parser.add_argument(
        "--resamples", type=int, default=1000, help="bootstrap resamples of the intervals"
    )
    add_adapter_flag(parser)
    add_field_flags(parser)


def run(values: dict[str, Any]) -> int:
    """Evaluates; returns the exit code."""
    if values["resamples"] < 0:
        raise UserError(f"resamples must be at least 0, not {values['resamples']}")
    fields = pop_fields(values)
    report, predictions = _output_paths(values["out"], values["predictions"], values["files"])
    pipeline = load_pipeline(values["directory"], values["threads"], values["adapter"])
    against = values["against"] and resolve_model(values["against"])
    with progress_bar("evaluating") as progress:
        evaluation = pipeline.evaluate(
            values["files"] if len(values["files"]) > 1 else values["files"][0],
            by=values["by"],
            against=against,
            batch_size=values["batch_size"],
            weight_dtype=values["weight_dtype"],
            num_resamples=values["resamples"],
            progress=progress,
            **fields,
        )
    print(evaluation.to_json() if values["json"] else evaluation)
    print_exits(pipeline)
    if report is not None:
        evaluation.write_report(report)
        print(f"report: {report}", file=sys.stderr)
    if predictions is not None:
        _write_predictions(predictions, evaluation)
        print(f"predictions: {predictions}", file=sys.stderr)
    return 0


def _output_paths(
    out: str | None, predictions: str | None, files: list[str]
) -> tuple[Path | None, Path | None]:
    """Paths of the report and the predictions; predictions are beside the report by default.

    Args:
        out, predictions: the flags.
        files: the data.

    Raises:
        UserError: a path is a folder or a file of the data, names the same file as the other one,
            or that of the report is no .html.
    """
    report = None if out is None else Path(out)
    rows = report.with_suffix(".jsonl") if report is not None and report.name else None
    rows = rows if predictions is None else Path(predictions)
    if report is not None and report == rows:
        raise UserError(f"out: {report} is for the report and predictions; name it .html")
    for flag, path in (("out", report), ("predictions", rows)):
        if path is not None:
            check_output(flag, path, files)
    if report is not None and report.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"out: {report} is to be an HTML page; name it .html")
    return report, rows


def _write_predictions(path: Path, evaluation: Any) -> None:
    from miniformer.utils.atomic import atomic_path

    records = evaluation.records
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as tmp_path, tmp_path.open("w", encoding="utf-8") as file:
            for row in evaluation.predictions():
                line = {**round_numbers(row), "record": records[row["index"]]}
                file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
