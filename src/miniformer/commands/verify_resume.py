"""`miniformer verify-resume`: checks that a killed run resumes bit-exactly."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from miniformer import trainer
from miniformer.config import UserError
from miniformer.train_config import TrainConfig

DESCRIPTION = (
    "Kill the first steps of a run at random batches, resume, and compare all losses and the "
    "final weights and state with those of an uninterrupted run. Has the flags of train."
)
FILES_FLAG, ONLY_GIVEN = trainer.FILES_FLAG, True
_VERIFY_DEFAULTS = {"steps": 20, "kills": 3}


def add_arguments(parser: Any) -> None:
    """Adds the arguments."""
    trainer.add_arguments(parser, only_settings=True)
    parser.add_argument(
        "--steps", type=int, default=_VERIFY_DEFAULTS["steps"], help="optimizer steps to compare"
    )
    parser.add_argument(
        "--kills", type=int, default=_VERIFY_DEFAULTS["kills"], help="number of kills"
    )


def run(values: dict[str, Any]) -> int:
    """Runs the subcommand; exit code 1: the runs differ."""
    options = {name: values.pop(name, default) for name, default in _VERIFY_DEFAULTS.items()}
    for name, value in options.items():
        if value < 1:
            raise UserError(f"{name} must be at least 1, not {value}")
    config = TrainConfig.from_dict(values)
    if config.resume is not None:
        raise UserError("verify-resume starts its own runs; leave resume out")
    from miniformer.training.resume.verify import (
        verify_resume,  # the import takes seconds
    )

    with tempfile.TemporaryDirectory() as folder:
        result = verify_resume(config, Path(folder), seed=config.seed, **options)
    if result.bit_exact:
        print(
            f"exact: {result.steps} losses, all weights and the rest of the state are "
            f"equal; {len(result.kills)} kills, resumed from steps {result.resumed_steps}"
        )
        return 0
    differences = (
        []
        if result.first_different_step is None
        else [f"in the loss of step {result.first_different_step}"]
    )
    if result.different_parts:
        differences.append(f"at the end in: {', '.join(result.different_parts)}")
    print(f"NOT exact: the resumed run differs from the uninterrupted one {'; '.join(differences)}")
    return 1
