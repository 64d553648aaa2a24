"""Evaluation of the model to use, for the report and the verdicts of a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from miniformer.checkpoint.artifacts import MODEL_CLASSES
from miniformer.data.reading.records import Records
from miniformer.data.selection import RecordSubset
from miniformer.evaluation.evaluation import Evaluation, evaluate
from miniformer.evaluation.run_batches import BatchSettings
from miniformer.evaluation.sections import render_sections
from miniformer.training.setup.run_setup import RunSetup

_MAX_RECORDS = 5_000  # evaluated for the report; fewer of tasks that generate text


@dataclasses.dataclass(frozen=True)
class BestEvaluation:
    """Results of the model to use, by record.

    Args:
        split: validation or test.
        evaluation: the results.
        num_records: all records of the split; of more than some thousands, a sample is evaluated.
    """

    split: str
    evaluation: Evaluation
    num_records: int

    def sections(self) -> list[tuple[str, str]]:
        """Title and HTML of each section of the report."""
        split = self.split
        if self.evaluation.num_records < self.num_records:
            split = f"{self.evaluation.num_records:,} of {self.num_records:,} {split} records,"
        return render_sections(self.evaluation, split)


def evaluate_best(run: RunSetup, directory: Path, split: str) -> BestEvaluation | None:
    """Evaluates a saved model on validation or test data; None: the task has no results by record.

    Args:
        run: the run.
        directory: the model directory.
        split: validation or test.
    """
    chunks = run.data.chunks.get("val" if split == "validation" else split)
    records: Records | None = getattr(chunks, "records", None)
    if records is None:
        return None
    limit = getattr(run.task, "eval_generate_samples", 0) or _MAX_RECORDS
    sample = records
    if len(records) > limit:
        rows = np.unique(np.linspace(0, len(records) - 1, limit).astype(np.int64))
        sample = RecordSubset(records, rows)
    with torch.random.fork_rng(devices=[]):
        model = MODEL_CLASSES[run.kind].from_pretrained(directory).to(run.device_type)
    data = run.data
    settings = BatchSettings(data.seq_len, data.batch_size, data.batch_tokens)
    evaluation = evaluate(model, run.task, run.tokenizer, sample, settings)
    if evaluation.results is None:
        return None
    return BestEvaluation(split, evaluation, len(records))
