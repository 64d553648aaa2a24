"""The folder of a run, kept over the attempts of a group of processes that torchrun restarts."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

from miniformer.training.distributed.restarts import agent_store
from miniformer.training.resume.storage import latest_checkpoint
from miniformer.training.setup.pretraining import PRETRAIN_FOLDER as WARM_START

_RUN_COUNTER = itertools.count()


class RunFolder:
    """The folder of a run, kept over the attempts of a group of processes; for rank 0.

    A script may make several runs one after another: each has its own, by its number in the script.

    Args:
        name: of the run.
    """

    def __init__(self, name: str) -> None:
        self._store = agent_store()
        self._key = f"folder/{next(_RUN_COUNTER)}/{name}"

    def find_existing(self) -> Path | None:
        """The folder that an earlier attempt made, to go on in; None: the run begins now.

        A folder without any state has nothing to go on from: it goes, and its name is free again.
        """
        if self._store is None or not self._store.check([self._key]):
            return None
        folder = Path(self._store.get(self._key).decode())
        if latest_checkpoint(folder) is None and latest_checkpoint(folder / WARM_START) is None:
            shutil.rmtree(folder, ignore_errors=True)
            return None
        return folder

    def register(self, folder: Path) -> Path:
        """Tells later attempts of a folder that was made; returns it."""
        if self._store is not None:
            self._store.set(self._key, str(folder.absolute()))
        return folder
