"""`miniformer doctor`, also `python -m miniformer.doctor`: a report on a model or the machine."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from miniformer import registry
from miniformer.config import TransformerConfig, UserError
from miniformer.config.architectures import SEQ2SEQ_ARCHITECTURES, architecture_config
from miniformer.config.command_line import command_context, parse_flags, resolve_model
from miniformer.config.flags.subcommands import make_command_parser
from miniformer.doctor.outcome import NotApplicable
from miniformer.doctor.run_checks import run_checks
from miniformer.doctor.subject import Subject, load_model

_TOY_SIZES = {"vocab_size": 100, "d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 64}
ENV = "env"


DESCRIPTION = (
    "Report the size and attention backends of a model and check it; without arguments, report the "
    "speed of this machine. `doctor env` prints versions and hardware for a bug report."
)


def add_arguments(parser: Any) -> None:
    """Adds the arguments."""
    parser.add_argument(
        "directory", type=str, nargs="?", help="model directory, the folder of a run, or env"
    )
    parser.add_argument(
        "--family", type=str, help="check a small random model of a family, such as llama"
    )
    known = ", ".join(registry.names("check"))
    parser.add_argument("--check", type=str, nargs="+", help=f"checks: {known}; null: all of them")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument("--html", type=str, help="also write a page to this file")


def run(values: dict[str, Any]) -> int:
    """Runs the reports; returns 1 if a check finds a problem."""
    checks, directory, family = values["check"], values["directory"], values["family"]
    for name in checks or ():
        if name not in registry.names("check"):
            raise UserError(registry.unknown_name_message("check", name, registry.names("check")))
    if directory is not None and family is not None:
        raise UserError("name a model directory or a family, not both")
    if (directory is None and family is None) or (directory == ENV and not Path(ENV).exists()):
        if checks is not None or values["html"] is not None:
            name = "check" if checks is not None else "html"
            raise UserError(f"{name} is for a model; name a model directory or a family, too")
        return _report_machine(directory == ENV, as_json=values["json"])
    if values["html"] is not None and Path(values["html"]).is_dir():
        raise UserError(f"html: {values['html']} is a directory; name a file")
    if directory is not None:
        path = Path(resolve_model(directory))
        if not path.is_dir():
            load_model(path)  # raises
        subject, target = Subject(path), shlex.quote(directory)
    else:
        subject, target = Subject(in_memory=_build_model(family)), f"--family {family}"
    return _report_model(subject, target, values)


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    with command_context() as command:
        parser = make_command_parser("doctor", sys.modules[__name__])
        command.code = run(parse_flags(parser, argv))
    return command.code


def _build_model(name: str) -> Any:
    try:
        config = TransformerConfig.from_dict(architecture_config(name, **_TOY_SIZES))
    except ValueError as error:
        raise UserError(str(error)) from None
    from miniformer.model.seq2seq import Seq2SeqTransformer
    from miniformer.model.transformer import Transformer

    return (Seq2SeqTransformer if name in SEQ2SEQ_ARCHITECTURES else Transformer)(config)


def _report_model(subject: Subject, target: str, values: dict[str, Any]) -> int:
    """Prints and writes the report of a model; returns 1 if a check finds a problem."""
    from miniformer.doctor.description import describe_model
    from miniformer.doctor.page import write_report

    quiet, outcomes = values["json"], []
    try:
        description = describe_model(subject.model)
    except NotApplicable as reason:  # the check of the files says why
        description = [str(reason)]
    if not quiet:
        print("\n".join(description), flush=True)
    for outcome in run_checks(subject, values["check"], target=target):
        outcomes.append(outcome)
        if not quiet:
            print("\n".join(outcome.lines()), flush=True)
    if quiet:
        report = {"description": description, "checks": [x.to_json() for x in outcomes]}
        print(json.dumps(report, indent=2))
    if values["html"] is not None:
        write_report(Path(values["html"]), target, description, outcomes)
    failed = [outcome.name for outcome in outcomes if outcome.status == "failed"]
    if failed and not quiet:
        print(f"{len(failed)} of {len(outcomes)} checks failed: {', '.join(failed)}")
    return int(bool(failed))


def _report_machine(complete: bool, *, as_json: bool) -> int:
    """Prints the speed of this machine, or, for a bug report, its versions and hardware."""
    from miniformer.doctor.machine import environment, speed

    report = environment() if complete else speed()
    print(json.dumps(report, indent=2) if as_json else "\n".join(map(": ".join, report.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
