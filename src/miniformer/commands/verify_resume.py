"""`miniformer verify-resume`: proves that a run goes on after a kill with the same bits."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from miniformer.config import UserError
from miniformer.train_config import TrainConfig
from miniformer.trainer import train_parser

_VERIFY_DEFAULTS = {"steps": 20, "kills": 3}


def add_verify_command(commands: Any) -> None:
    """Adds the subcommand."""
    parser = train_parser()
    parser.description = (
        "Kill the first steps of a run at batches chosen by chance, resume them, and compare every "
        "loss, and weights and state at the end, with those of a run left alone. Its flags are "
        "those of train."
    )
    parser.add_argument(
        "--steps", type=int, default=_VERIFY_DEFAULTS["steps"], help="optimiser steps to compare"
    )
    parser.add_argument(
        "--kills", type=int, default=_VERIFY_DEFAULTS["kills"], help="how often the run is killed"
    )
    commands.add_subcommand(
        "verify-resume", parser, help="prove that a run can be killed and resumed, bit for bit"
    )


def run_verify(values: dict[str, Any]) -> int:
    """Runs the subcommand; exit code 1: the runs differ."""
    own = {name: values.pop(name, default) for name, default in _VERIFY_DEFAULTS.items()}
    for name, value in own.items():
        if value < 1:
            raise UserError(f"{name} must be at least 1, not {value}")
    config = TrainConfig.from_dict(values)
    if config.resume is not None:
        raise UserError("verify-resume begins runs of its own; leave resume out")
    from miniformer.training.resume.verify import (
        verify_resume,  # only now: it takes seconds to import
    )

    with tempfile.TemporaryDirectory() as folder:
        verdict = verify_resume(config, Path(folder), seed=config.seed, **own)
    if verdict.bit_exact:
        print(
            f"exact: {verdict.steps} losses, all weights and the rest of the state are the same "
            f"bits; {len(verdict.kills)} kills, resumed from steps {verdict.resumed_steps}"
        )
        return 0
    where = (
        []
        if verdict.first_different_step is None
        else [f"in the loss of step {verdict.first_different_step}"]
    )
    if verdict.different_parts:
        where.append(f"at the end in: {', '.join(verdict.different_parts)}")
    print(f"NOT exact: the resumed run differs from the undisturbed one {'; '.join(where)}")
    return 1
