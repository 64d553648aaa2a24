"""RunSetup: what a run needs before its first step, and what a resumed run loads of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from miniformer.checkpoint.artifacts import read_task
from miniformer.checkpoint.data_settings import StoredDataSettings
from miniformer.config import TransformerConfig
from miniformer.data.datamodule import MiniFormerDataModule
from miniformer.data.tokenizers.tokenizer import Tokenizer
from miniformer.tasks.base import Task
from miniformer.training.setup.resolve import Resolution
from miniformer.training.tuning.lr_finder import LRFinderResult


@dataclasses.dataclass
class RunSetup(Resolution):
    """Everything that training needs: the resolved settings, and what was built from them.

    Args:
        task: the task, fitted to its training data.
        metric: metric of the best model, without the prefix `val_`.
        num_validations: validations of the run, if val_check_interval is null; 0: no validation.
        data: the datamodule, set up.
        model: the model with its initial weights.
        model_config: config of the model.
        tokenizer: the tokenizer; None: the task reads no text.
        tokenizer_summary: one line about the tokenizer.
        seq_len: tokens of a window, or maximum tokens of an input and of a target.
        pretrained_path: the model directory of `init_from`.
        predicted_memory: predicted peak memory of the process in bytes; None: not predicted.
        lr_search: result of the learning rate finder; None: not used.
        trials: content of trials.json; None: no trials.
    """

    task: Task
    metric: str
    num_validations: int
    data: MiniFormerDataModule
    model: Any
    model_config: TransformerConfig
    tokenizer: Tokenizer | None
    tokenizer_summary: str | None
    seq_len: int
    pretrained_path: Path | None
    predicted_memory: int | None = None
    lr_search: LRFinderResult | None = None
    trials: dict[str, Any] | None = None

    @property
    def data_settings(self) -> StoredDataSettings:
        """Files and batches as the run reads them, for its model directories."""
        mapping = self.data.mapping
        return StoredDataSettings(
            seq_len=self.data.seq_len,
            batch_size=self.data.batch_size,
            batch_tokens=self.data.batch_tokens,
            fields=None if mapping is None else mapping.to_dict(),
        )


def load_run_task(run_dir: Path, kind: str) -> Task | None:
    """Loads the fitted task of a run folder; None: the run has not saved it.

    Run folders of earlier versions have a task.json only in their model directories.
    """
    for folder in (run_dir, run_dir / "best", run_dir / "last"):
        if (folder / "task.json").is_file():
            return read_task(folder / "task.json", kind)
    return None


def load_run_tokenizer(run_dir: Path) -> tuple[Tokenizer | None, str | None]:
    """Loads the tokenizer of a run folder and returns one line about it."""
    if not (run_dir / "tokenizer.json").is_file():
        return None, None
    tokenizer = Tokenizer.from_path(run_dir)
    if (run_dir / "source_tokenizer").is_dir():
        tokenizer.separate_source_tokenizer = Tokenizer.from_path(run_dir / "source_tokenizer")
    return tokenizer, f"{tokenizer.vocab_size:,} ids, from the resumed run"
