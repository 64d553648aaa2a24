"""StoredExit: `early_exit.json` of a model directory, the threshold of a classifier's exits."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from miniformer.config import StrictConfig, UserError, option
from miniformer.model.exit_policy import ExitPolicy
from miniformer.utils.jsonl import read_json

FILE_NAME = "early_exit.json"


@dataclasses.dataclass(frozen=True)
class StoredExit(StrictConfig):
    """Content of `early_exit.json`.

    Args:
        threshold: see `ExitPolicy`.
        max_loss: bound of the share of records that lose a right class.
        confidence: probability with which the bound holds, over draws of the calibration records.
        num_records: number of calibration records.
        loss: share of these records that lost a right class.
        mean_layers: layers that they used on average.
        n_layers: layers of the model.
    """

    threshold: float = option(1.0, low=0.0, high=1.0)
    max_loss: float = option(0.01, above=0.0, high=1.0)
    confidence: float = option(0.95, above=0.0, high=1.0)
    num_records: int = option(1, low=1)
    loss: float = option(0.0, low=0.0, high=1.0)
    mean_layers: float = option(1.0, low=1.0)
    n_layers: int = option(2, low=2)


def has_exits(task: Any) -> bool:
    """True of classification, whose probabilities are a softmax of the outputs of the model."""
    return bool(task.name == "classification")


def read_exit_policy(directory: Path, model: Any, task: Any) -> ExitPolicy | None:
    """The policy of a directory; None: it has no threshold.

    Args:
        directory: the model directory.
        model: its model.
        task: its task.

    Raises:
        UserError: the file is invalid, or is that of another model.
    """
    path = directory / FILE_NAME
    if not path.exists():
        return None
    stored = _read(path)
    count = len(getattr(model, "layers", ()))
    if count != stored.n_layers or not has_exits(task):
        raise UserError(
            f"{path}: the threshold is for a classifier of {stored.n_layers} layers, which this "
            "model is not; remove the file"
        )
    return ExitPolicy(stored.threshold)


def _read(path: Path) -> StoredExit:
    try:
        values = read_json(path)
        if isinstance(values, dict):
            fields = {field.name for field in dataclasses.fields(StoredExit)}
            if missing := sorted(fields - values.keys()):
                raise UserError(f"{path}: {missing[0]} is missing")
        return StoredExit.from_dict(values, stored=True)
    except (UserError, OSError, ValueError) as error:
        message = str(error) if str(path) in str(error) else f"{path}: {error}"
        raise UserError(f"{message}; remove the file, then run calibrate-exit again") from None
