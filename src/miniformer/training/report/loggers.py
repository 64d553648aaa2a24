"""Where figures are sent, by name: (run folder) -> Lightning logger, or False for none.

A folder that has been logged from before, by a run that was resumed, goes on in the same place.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger

from miniformer.utils.atomic import write_text

_MLFLOW_RUN_ID_FILE = "mlflow_run_id"


def tensorboard(folder: Path) -> TensorBoardLogger:
    return TensorBoardLogger(folder, name="", version="tensorboard")


def csv(folder: Path) -> CSVLogger:
    # Lightning begins each file anew, so a resumed run has one of its own.
    number = 1 + sum(1 for each in folder.glob("csv*") if each.is_dir())
    return CSVLogger(folder, name="", version="csv" if number == 1 else f"csv-{number}")


def wandb(folder: Path) -> WandbLogger:
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    return WandbLogger(
        name=folder.name, save_dir=folder, project="miniformer", id=name, resume="allow"
    )


def mlflow(folder: Path) -> MLFlowLogger:
    """MLflow, in `mlflow.db` beside the runs, or where MLFLOW_TRACKING_URI says."""
    kept = folder / _MLFLOW_RUN_ID_FILE
    known = kept.read_text(encoding="utf-8").strip() if kept.exists() else None
    database = folder.resolve().parent / "mlflow.db"
    logger = MLFlowLogger(
        experiment_name="miniformer",
        run_name=folder.name,
        tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{database}"),
        run_id=known,
    )
    if known is None and logger.run_id:
        write_text(kept, logger.run_id + "\n")
    return logger


def finish_loggers(loggers: Iterable[Any]) -> None:
    """Ends what Lightning leaves open: a Weights & Biases run, of which there is one a process."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


def none(folder: Path) -> Any:
    return False
