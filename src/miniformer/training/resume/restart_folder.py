"""The run folder, shared by the attempts of a group of processes that torchrun restarts."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

from miniformer.training.distributed.restarts import agent_store
from miniformer.training.resume.storage import latest_checkpoint
from miniformer.training.setup.pretraining import PRETRAIN_FOLDER

_RUN_COUNTER = itertools.count()


class RunFolder:
    """The folder of a run across the attempts of a process group; used on rank 0.

    The runs of a script are distinguished by their number in the script.

    Args:
        name: the run's name.
    """

    def __init__(self, name: str) -> None:
        self._store = agent_store()
        self._key = f"folder/{next(_RUN_COUNTER)}/{name}"

    def find_existing(self) -> Path | None:
        """The folder of an earlier attempt to resume; None: this is a new run.

        A folder without a checkpoint is removed, so that its name can be used again.
        """
        if self._store is None or not self._store.check([self._key]):
            return None
        folder = Path(self._store.get(self._key).decode())
        if (
            latest_checkpoint(folder) is None
            and latest_checkpoint(folder / PRETRAIN_FOLDER) is None
        ):
            shutil.rmtree(folder, ignore_errors=True)
            return None
        return folder

    def register(self, folder: Path) -> Path:
        """Registers a new folder for later attempts; returns it."""
        if self._store is not None:
            self._store.set(self._key, str(folder.absolute()))
        return folder
