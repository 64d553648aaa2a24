"""The pretraining part of a run; `setup/pretraining.py` makes its config."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import lightning as L
from rich.console import Console

from miniformer.train_config import TrainConfig
from miniformer.training.distributed.launcher import broadcast_from_rank0
from miniformer.training.evaluate import RunResult
from miniformer.training.setup.builders import build_callbacks
from miniformer.training.setup.init_from import load_pretrained_weights
from miniformer.training.setup.pretraining import PRETRAIN_FOLDER, resume_pretraining
from miniformer.training.setup.run_folder import create_run_folder
from miniformer.training.setup.run_setup import RunSetup


def pretrain(
    run: RunSetup,
    config: TrainConfig,
    folder: Path,
    console: Console,
    train: Callable[..., RunResult],
) -> RunResult:
    """Pretrains the model on its texts, or resumes that, and loads the weights.

    Args:
        run: the run that pretraining precedes.
        config: see `pretrain_config`.
        folder: folder of the run.
        console: output of rank 0.
        train: trains a config, with callbacks, a checkpoint or None, and a function that creates
            the folder.
    """
    config, checkpoint = broadcast_from_rank0(lambda: resume_pretraining(config, folder))
    console.print("pretraining: masked language modeling on the input texts")
    create_folder = partial(create_run_folder, folder, PRETRAIN_FOLDER)
    result = train(config, build_callbacks((), config.all_callbacks()), checkpoint, create_folder)
    if result.interrupted is None:
        _, new = load_pretrained_weights(run.model, result.model, run.kind)
        console.print(f"pretraining complete; newly initialized: {', '.join(new)}")
    L.seed_everything(run.config.seed, verbose=False)  # as after resuming
    return result
