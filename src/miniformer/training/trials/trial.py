"""One short training run on a part of the training data, evaluated on another part."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import warnings
from collections.abc import Iterator
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.utilities.seed import isolate_rng
from rich.console import Console

from miniformer.config.train_settings import IN_MEMORY, OptimizationSettings
from miniformer.data.reading.records import Records
from miniformer.evaluation.run_batches import BatchSettings, run_batches
from miniformer.tasks.base import Task
from miniformer.tasks.common.record_results import RecordResults
from miniformer.train_config import TrainConfig
from miniformer.training.callbacks.budget import Budget
from miniformer.training.callbacks.interrupt import InterruptCallback
from miniformer.training.callbacks.validation import BudgetStopping
from miniformer.training.lit_module import MiniFormerLitModule
from miniformer.training.setup.builders import make_trainer, suppress_lightning_hints
from miniformer.training.setup.estimate import estimate_run
from miniformer.training.setup.prepare import prepare
from miniformer.training.setup.run_setup import RunSetup
from miniformer.training.trials.candidates import Candidate

_TIMED_SECONDS = 0.3
# A cut target or text has fewer tokens to predict, so that its loss is not comparable.
_MAX_CUT_SHARE = 0.01


@dataclasses.dataclass(frozen=True)
class TrialResult:
    """Result of a trial.

    Args:
        candidate: the settings.
        steps: optimizer steps; 0: of the wide head alone.
        losses: summed loss of each held-out record, float64 [N].
        loss: their mean, comparable between tokenizers.
        metric: the checkpoint metric on the held-out records; None: the loss decides.
        results: for resampling; rows in the order of the data.
        task: computes resampled metrics.
    """

    candidate: Candidate
    steps: int
    losses: np.ndarray
    loss: float
    metric: float | None
    results: RecordResults
    task: Task


class TrialInterrupted(Exception):
    """A signal ended a trial.

    Args:
        signal: its number.
    """

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal


class Trial:
    """Short runs of a candidate.

    Args:
        candidate: the settings.
        config: the run, as given.
        fit: records to train on.
        held_out: records to evaluate on.

    Raises:
        UserError: the candidate does not fit the data.
    """

    def __init__(
        self, candidate: Candidate, config: TrainConfig, fit: Records, held_out: Records
    ) -> None:
        self.candidate, self.held_out = candidate, held_out
        self.run = prepare_trial(candidate.apply(config), fit, held_out)
        self._initial = copy.deepcopy(self.run.model.state_dict())
        with isolate_rng():
            estimate = estimate_run(self.run, seconds=_TIMED_SECONDS)
        # Steps of a whole run on these records, and its seconds.
        self.seconds = estimate.seconds or 0.0
        self.total_steps = estimate.steps or round(self.seconds / estimate.step_seconds)

    @property
    def is_comparable(self) -> bool:
        """False if many targets or texts are cut, or have words that the tokenizer lacks."""
        store = self.run.data.in_memory_examples("train")
        if store is None:
            return False
        if not self.run.task.per_token_loss or self.run.tokenizer is None:
            return True
        cut = store.columns.get("cut")
        has_cuts = cut is not None and float((cut > 0).mean()) > _MAX_CUT_SHARE
        return not has_cuts and not self._loses_text()

    def _loses_text(self) -> bool:
        """Returns whether decoding changes many held-out targets, as of unknown words."""
        tokenizer, task = self.run.tokenizer, self.run.task
        assert tokenizer is not None
        texts = [list(task.texts(record))[-1] for record in self.held_out]
        decoded = [tokenizer.decode(ids) for ids in tokenizer.encode_batch(texts)]
        lost = sum(x.split() != y.split() for x, y in zip(texts, decoded, strict=True))
        return lost > _MAX_CUT_SHARE * len(texts)

    @property
    def has_wide_head(self) -> bool:
        """True if the model has a wide head, which is fitted already."""
        return getattr(self.run.model, "wide_head", None) is not None

    def train(self, steps: int) -> TrialResult:
        """Trains from the initial weights for a number of steps and evaluates.

        With 0 steps, the outputs are those of the wide head alone.

        Raises:
            TrialInterrupted: by Ctrl-C.
        """
        run = self.run
        run.model.load_state_dict(self._initial)
        options = run.config.part(OptimizationSettings).module_options()
        budget = Budget(max_steps=steps)
        module = MiniFormerLitModule(
            run.model, task=run.task, tokenizer=run.tokenizer, budget=budget, **options
        )
        interrupt = InterruptCallback()
        callbacks = [BudgetStopping(budget, lambda line: None), interrupt]
        if steps:
            with isolate_rng(), suppress_lightning_hints(), interrupt:
                L.seed_everything(run.config.seed, verbose=False)
                trainer = make_trainer(run, None, callbacks)
                trainer.fit(module, train_dataloaders=run.data.train_dataloader())
        if interrupt.signal is not None:
            raise TrialInterrupted(interrupt.signal)
        return self._evaluate(steps)

    def _evaluate(self, steps: int) -> TrialResult:
        run, task = self.run, self.run.task
        if hasattr(task, "eval_generate_samples"):  # decoding takes longer than the trial
            changes: dict[str, Any] = {"eval_generate_samples": 0}
            task = dataclasses.replace(task, **changes)
        settings = BatchSettings(run.seq_len, run.config.batch_size or 16, run.config.batch_tokens)
        metrics, results = run_batches(
            run.model, task, run.tokenizer, self.held_out.with_schema(task.schema), settings
        )
        assert results is not None
        results = results.in_data_order()
        losses = results.losses * results.weights
        metric = None if run.metric == "loss" else metrics.get(run.metric)
        return TrialResult(
            self.candidate, steps, losses, float(losses.mean()), metric, results, task
        )


def prepare_trial(config: TrainConfig, fit: Records, held_out: Records) -> RunSetup:
    """Builds the tokenizer, data and model of a trial; prints and writes nothing."""
    config = dataclasses.replace(
        config, val_path=IN_MEMORY, test_path=None, val_share=None, folds=None, fold=None,
        auto="off", find_lr=False, sample_prompt=None,
    )  # fmt: skip
    records = {"train_path": fit, "val_path": held_out}
    with _quiet(), isolate_rng():
        L.seed_everything(config.seed, verbose=False)
        run = prepare(config, Console(file=io.StringIO()), in_memory=records)
    run.model.to(run.device_type)
    return run


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
