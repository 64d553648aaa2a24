"""Loggers by name: functions from a run folder to a Lightning logger, or False for none.

A resumed run continues the log of its folder.
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
    # Lightning overwrites the file, so a resumed run gets a new folder.
    number = 1 + sum(path.is_dir() for path in folder.glob("csv*"))
    return CSVLogger(folder, name="", version="csv" if number == 1 else f"csv-{number}")


def wandb(folder: Path) -> WandbLogger:
    name = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    return WandbLogger(
        name=folder.name, save_dir=folder, project="miniformer", id=name, resume="allow"
    )


def mlflow(folder: Path) -> MLFlowLogger:
    """MLflow; by default in `mlflow.db` next to the run folders, else at MLFLOW_TRACKING_URI."""
    id_path = folder / _MLFLOW_RUN_ID_FILE
    run_id = id_path.read_text(encoding="utf-8").strip() if id_path.exists() else None
    database = folder.resolve().parent / "mlflow.db"
    logger = MLFlowLogger(
        experiment_name="miniformer",
        run_name=folder.name,
        tracking_uri=os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{database}"),
        run_id=run_id,
    )
    if run_id is None and logger.run_id:
        write_text(id_path, logger.run_id + "\n")
    return logger


def finish_loggers(loggers: Iterable[Any]) -> None:
    """Finishes the Weights & Biases run, which Lightning leaves open."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


def none(folder: Path) -> Any:
    return False
