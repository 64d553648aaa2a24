"""`auto`: chooses settings by trials before a run."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.utilities.seed import isolate_rng
from rich.console import Console

from miniformer.config import UserError
from miniformer.config.resolved import ResolvedSetting
from miniformer.data.holdout import hold_out
from miniformer.data.reading.records import Records
from miniformer.data.selection import RecordSubset
from miniformer.train_config import TrainConfig
from miniformer.training.setup.limits import count_epochs
from miniformer.training.setup.prepare import prepare
from miniformer.training.setup.run_setup import RunSetup
from miniformer.training.trials.candidates import (
    TIME_SHARES,
    Candidate,
    candidate_groups,
    unsupported_reason,
)
from miniformer.training.trials.selection import compare, halve, select
from miniformer.training.trials.trial import Trial, TrialInterrupted, TrialResult
from miniformer.utils.formats import format_duration

_HELD_OUT_SHARE, _MAX_HELD_OUT = 0.2, 1_000
_MIN_RECORDS, _MIN_RUN_SECONDS, _MIN_STEPS = 100, 20.0, 20
_MAX_RUN_SHARE = 0.5  # of a trial: no more than half of a run
_EVALUATION_MARGIN = 0.8  # share of the budget for training steps
# Preparation of an alternative, relative to the defaults: texts have more characters than subwords.
_PREPARATION_COST, _WIDE_HEAD_COST = 1.5, 4.0
_MIN_SHARE = 0.2  # of the records
_FLOPS_PER_SECOND = 3e10  # of one core; only rules out runs of a few seconds


def choose_settings(
    run: RunSetup,
    config: TrainConfig,
    console: Console,
    in_memory: Mapping[str, Any] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> RunSetup:
    """Tries settings, and returns the run with the best ones, or the same run.

    Args:
        run: the prepared run with the defaults.
        config: the run, as given; `auto` is quick or full.
        console: output.
        in_memory: see `prepare`.
        clock: returns the current time in seconds.

    Raises:
        KeyboardInterrupt: the trials were interrupted.
    """
    try:
        with isolate_rng():
            search = _Search(run, config, console, clock)
            reason = search.run_all()
    except (TrialInterrupted, KeyboardInterrupt) as error:
        console.print("interrupted during the trials of auto: nothing was trained or written")
        if isinstance(error, TrialInterrupted) and error.signal == 15:
            raise SystemExit(143) from None
        raise KeyboardInterrupt from None
    if reason is not None:
        console.print(f"auto={config.auto}: no trials: {reason}")
        run.resolved.append(ResolvedSetting("trials", "none", reason))
        return run
    chosen = search.chosen
    if chosen.settings:
        output = Console(file=io.StringIO())  # the lines about the data have been printed
        L.seed_everything(config.seed, verbose=False)
        run, given = prepare(chosen.apply(config), output, in_memory=in_memory), run.given
        run.given = given
    run.resolved += search.settings()
    run.trials = search.to_json()
    return run


def affordable_share(seconds: float, relative_cost: float, limit: float) -> float:
    """Share of the records with which all candidates can be prepared in the time, at most 1.

    Args:
        seconds: of the preparation of the defaults with all records, which is done.
        relative_cost: that of the alternatives, relative to the defaults.
        limit: seconds left.
    """
    reserve = _EVALUATION_MARGIN * limit
    if relative_cost * seconds <= reserve:
        return 1.0
    return max(0.0, reserve / ((1 + relative_cost) * seconds))


def share_of_run(seconds: Sequence[float], limit: float) -> float:
    """Share of a whole run that each trial trains for.

    With more than one alternative, the defaults and the better half then train for twice that.

    Args:
        seconds: of a whole run with each candidate, the defaults first.
        limit: seconds for all trials.
    """
    default, *others = (max(value, 1e-3) for value in seconds)
    cost = default + sum(others)
    if len(others) > 1:
        cost += 2 * (default + sum(sorted(others)[-(len(others) // 2) :]))
    largest = _MAX_RUN_SHARE if len(others) < 2 else _MAX_RUN_SHARE / 2
    return min(max(0.0, _EVALUATION_MARGIN * limit / cost), largest)


class _Search:
    """Trials of a run, group by group; a group starts from the choices before it."""

    def __init__(
        self, run: RunSetup, config: TrainConfig, console: Console, clock: Callable[[], float]
    ) -> None:
        self.run, self.config, self.console, self.clock = run, config, console, clock
        self.start = clock()
        self.mode = config.auto or "quick"
        self.chosen = Candidate({})
        self.budget = 0.0
        self.reasons: dict[str, str] = {}
        self.rows: list[dict[str, Any]] = []
        self.sizes = (0, 0)

    def run_all(self) -> str | None:
        """Runs all trials; returns the reason if there are none."""
        if (name := unsupported_reason(self.config)) is not None:
            return f"not with {name}"
        groups = candidate_groups(self.run, self.config, self.mode)
        records = getattr(self.run.data.chunks["train"], "records", None)
        if not groups:
            return "the settings are given, or have no alternatives"
        if records is None or len(records) < _MIN_RECORDS:
            return f"fewer than {_MIN_RECORDS} training records"
        if self._certainly_short():
            return f"the run takes less than {_MIN_RUN_SECONDS:g} s"
        share = min(_HELD_OUT_SHARE, _MAX_HELD_OUT / len(records))
        try:
            fit, held_out = hold_out(records, share)
        except UserError as error:
            return str(error)
        self.sizes = (len(fit), len(held_out))
        reason = None
        for index, group in enumerate(groups):
            reason = self._try_group(group, fit, held_out, len(groups) - index)
            if reason is not None:
                break
        return None if self.rows else reason

    def _certainly_short(self) -> bool:
        """Returns whether the run takes a few seconds, by a generous estimate."""
        run = self.run
        if run.config.max_seconds is not None:
            return run.config.max_seconds < _MIN_RUN_SECONDS
        params = run.model_config.num_params(seq2seq=run.kind == "seq2seq")
        tokens, epochs = run.data.num_tokens("train"), count_epochs(run.config, run.data)
        if not tokens or epochs is None:
            return False
        return 6 * params * tokens * epochs / _FLOPS_PER_SECOND < _MIN_RUN_SECONDS / 40

    def _try_group(
        self, group: Sequence[Candidate], fit: Records, held_out: Records, num_groups: int
    ) -> str | None:
        """Tries the candidates of a group; returns the reason if there is no time."""
        config = self.chosen.apply(self.config)
        start = self.clock()
        default = Trial(group[0], config, fit, held_out)
        if not self.budget:
            limited = self.run.config.max_seconds is not None
            seconds = default.seconds * (1 if limited else sum(self.sizes) / self.sizes[0])
            if seconds < _MIN_RUN_SECONDS:
                return f"the run takes less than {_MIN_RUN_SECONDS:g} s"
            self.budget = TIME_SHARES[self.mode] * seconds
        cost = _WIDE_HEAD_COST if default.has_wide_head else _PREPARATION_COST
        share = affordable_share(
            self.clock() - start, cost * (len(group) - 1), self._time_left(num_groups)
        )
        if share < _MIN_SHARE:
            return "the time is too short"
        if share < 1:
            rows = np.random.default_rng(0).permutation(len(fit))[: round(share * len(fit))]
            fit = RecordSubset(fit, np.sort(rows))
            default = Trial(group[0], config, fit, held_out)
        self._print_header(len(fit))
        trials = [default]
        for candidate in group[1:]:
            with contextlib.suppress(UserError):  # it does not fit the data
                trial = Trial(candidate, config, fit, held_out)
                if trial.is_comparable:
                    trials.append(trial)
        results = self._run_rungs(trials, num_groups) if len(trials) > 1 else None
        if results is None:
            return "the time is too short" if len(trials) > 1 else "no alternative fits the data"
        best = select(results, self.run.metric)
        self._record_choice(best, results[0])
        return None

    def _time_left(self, num_groups: int) -> float:
        """Seconds for the current group; the groups after it get as much."""
        return (self.budget - (self.clock() - self.start)) / num_groups

    def _run_rungs(self, trials: list[Trial], num_groups: int) -> list[TrialResult] | None:
        """Results of the last rung, the defaults first; None: no time for useful trials."""
        if all(trial.has_wide_head for trial in trials):
            return [self._run_trial(trial, 0.0) for trial in trials]
        seconds = [trial.seconds for trial in trials]
        share = share_of_run(seconds, self._time_left(num_groups))
        if share * min(trial.total_steps for trial in trials) < _MIN_STEPS:
            return None
        results = [self._run_trial(trial, share) for trial in trials]
        if len(trials) == 2:
            return results
        retained = {str(result.candidate) for result in halve(results, self.run.metric)}
        trials = [trial for trial in trials if str(trial.candidate) in retained]
        return [self._run_trial(trial, 2 * share) for trial in trials]

    def _run_trial(self, trial: Trial, share: float) -> TrialResult:
        result = trial.train(round(share * trial.total_steps))
        row: dict[str, Any] = {
            "settings": {**self.chosen.settings, **result.candidate.settings},
            "name": str(result.candidate), "steps": result.steps, "loss": result.loss,
        }  # fmt: skip
        metric = ""
        if result.metric is not None:
            row[self.run.metric] = result.metric
            metric = f"{self.run.metric} {result.metric:.4g}, "
        self.rows.append(row)
        steps = f"{result.steps} steps" if result.steps else "wide head"
        self.console.print(
            f"  {result.candidate}: {steps}, {metric}loss {result.loss:.4g} a record"
        )
        return result

    def _print_header(self, num_records: int) -> None:
        budget = format_duration(max(1, round(self.budget)))
        self.console.print(
            f"auto={self.mode}: trials on {num_records:,} training records, evaluated on "
            f"{self.sizes[1]:,} others, for about {budget}"
        )

    def _record_choice(self, best: TrialResult, default: TrialResult) -> None:
        if best is default:
            return
        difference = compare(best, default, self.run.metric)
        self.chosen = Candidate({**self.chosen.settings, **best.candidate.settings})
        for name in best.candidate.settings:
            self.reasons[name] = f"auto={self.mode}: {difference} than {default.candidate}"

    def settings(self) -> Iterator[ResolvedSetting]:
        """The choices with their reasons; also prints them."""
        for name, value in self.chosen.settings.items():
            setting = ResolvedSetting(name, value, self.reasons[name])
            self.console.print(f"  chosen: {setting}")
            yield setting
        reason = f"trials.json: {len(self.rows)} trials"
        if not self.chosen.settings:
            reason += "; no alternative is better by more than the noise"
            self.console.print("  chosen: the defaults; no alternative is better by more than "
                               "the noise")  # fmt: skip
        yield ResolvedSetting(
            "trials", "retained" if not self.chosen.settings else "chosen", reason
        )

    def to_json(self) -> dict[str, Any]:
        """Content of trials.json."""
        return {
            "auto": self.mode,
            "budget_seconds": self.budget,
            "seconds": self.clock() - self.start,
            "training_records": self.sizes[0],
            "held_out_records": self.sizes[1],
            "metric": self.run.metric,
            "trials": self.rows,
            "chosen": self.chosen.settings,
            "reasons": self.reasons,
        }
