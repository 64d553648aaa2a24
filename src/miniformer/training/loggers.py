"""Where figures are sent, by name: (run folder) -> Lightning logger, or False for none."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger


def tensorboard(folder: Path) -> TensorBoardLogger:
    return TensorBoardLogger(folder, name="", version="tensorboard")


def csv(folder: Path) -> CSVLogger:
    return CSVLogger(folder, name="", version="csv")


def wandb(folder: Path) -> WandbLogger:
    return WandbLogger(name=folder.name, save_dir=folder, project="miniformer")


def finish(loggers: Iterable[Any]) -> None:
    """Ends what Lightning leaves open: a Weights & Biases run, of which there is one a process."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


def none(folder: Path) -> Any:
    return False
