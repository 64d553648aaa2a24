"""Selection of the number of threads per step by timing.

Each additional thread adds some microseconds to every synchronization, of which a layer has
several. So fewer threads are faster for a small model or on a busy machine.
"""

from __future__ import annotations

import dataclasses

_STEPS_PER_CANDIDATE = 4  # consecutive steps per candidate; the first one is not timed
_ROUNDS = 2
_RETUNE_INTERVAL = 1000  # steps until the next tuning: the load of the machine may change


@dataclasses.dataclass
class _ThreadTrial:
    """Comparison of two numbers of threads by their minimum step time."""

    more_threads: int
    fewer_threads: int
    min_seconds: dict[int, float] = dataclasses.field(default_factory=dict)
    num_steps: int = 0
    selected: int | None = None

    def next_candidate(self) -> int:
        """Number of threads of the next step."""
        return (self.more_threads, self.fewer_threads)[self.num_steps // _STEPS_PER_CANDIDATE % 2]


class ThreadTuner:
    """Selects the number of threads for each power-of-two range of rows.

    Args:
        max_threads: maximum number of threads.
    """

    def __init__(self, max_threads: int) -> None:
        self.max_threads = max_threads
        self._trials: dict[int, _ThreadTrial] = {}

    def num_threads(self, rows: int) -> int:
        """Number of threads for the next step with `rows` rows."""
        trial = self._trial(rows)
        return trial.next_candidate() if trial.selected is None else trial.selected

    def record_time(self, rows: int, seconds: float) -> None:
        """Records the duration of the last step."""
        trial, key = self._trial(rows), rows.bit_length()
        if trial.selected is None and trial.num_steps % _STEPS_PER_CANDIDATE:
            # The minimum excludes interference by other processes.
            threads = trial.next_candidate()
            trial.min_seconds[threads] = min(seconds, trial.min_seconds.get(threads, seconds))
        trial.num_steps += 1
        if trial.selected is not None:
            if trial.num_steps == _RETUNE_INTERVAL:
                del self._trials[key]
        elif trial.num_steps == 2 * _STEPS_PER_CANDIDATE * _ROUNDS:
            if trial.min_seconds[trial.more_threads] <= trial.min_seconds[trial.fewer_threads]:
                trial.selected = trial.more_threads
            elif trial.fewer_threads == 1:
                trial.selected = 1
            else:
                self._trials[key] = _ThreadTrial(trial.fewer_threads, trial.fewer_threads // 2)

    def _trial(self, rows: int) -> _ThreadTrial:
        key = rows.bit_length()
        if key not in self._trials:
            selected = 1 if self.max_threads == 1 else None
            self._trials[key] = _ThreadTrial(
                self.max_threads, max(1, self.max_threads // 2), selected=selected
            )
        return self._trials[key]
