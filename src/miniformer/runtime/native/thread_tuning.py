"""How many threads a step has: as many as are measured to be fastest.

A thread more means a few microseconds more at each meeting, of which a layer has several, and a
wait for whoever is late: on a small model, or a machine that does something else, fewer are faster.
"""

from __future__ import annotations

import dataclasses

_STEPS_PER_CANDIDATE = (
    4  # steps with as many threads, of which the first does not count: others still wait
)
_ROUNDS = 2
_RETUNE_INTERVAL = (
    1000  # steps after which it is measured again, for a machine may have become busy
)


@dataclasses.dataclass
class _ThreadTrial:
    """Two numbers of threads that are measured, and the least that a step took with each."""

    more_threads: int
    fewer_threads: int
    min_seconds: dict[int, float] = dataclasses.field(default_factory=dict)
    num_steps: int = 0
    chosen: int | None = None

    def next_candidate(self) -> int:
        """Whose turn it is."""
        return (self.more_threads, self.fewer_threads)[self.num_steps // _STEPS_PER_CANDIDATE % 2]


class ThreadTuner:
    """Chooses numbers of threads; steps of about as many rows have theirs in common.

    Args:
        most: threads that there may be.
    """

    def __init__(self, max_threads: int) -> None:
        self.max_threads = max_threads
        self._trials: dict[int, _ThreadTrial] = {}

    def num_threads(self, rows: int) -> int:
        """Threads for the next step of so many rows."""
        duel = self._trial(rows)
        return duel.next_candidate() if duel.chosen is None else duel.chosen

    def record_time(self, rows: int, seconds: float) -> None:
        """What that step took."""
        duel, kind = self._trial(rows), rows.bit_length()
        if duel.chosen is None and duel.num_steps % _STEPS_PER_CANDIDATE:
            # The least is what a step takes where nobody disturbs it.
            duel.min_seconds[duel.next_candidate()] = min(
                seconds, duel.min_seconds.get(duel.next_candidate(), seconds)
            )
        duel.num_steps += 1
        if duel.chosen is not None:
            if duel.num_steps == _RETUNE_INTERVAL:
                del self._trials[kind]
        elif duel.num_steps == 2 * _STEPS_PER_CANDIDATE * _ROUNDS:
            if duel.min_seconds[duel.more_threads] <= duel.min_seconds[duel.fewer_threads]:
                duel.chosen = duel.more_threads
            elif duel.fewer_threads == 1:
                duel.chosen = 1
            else:
                self._trials[kind] = _ThreadTrial(duel.fewer_threads, duel.fewer_threads // 2)

    def _trial(self, rows: int) -> _ThreadTrial:
        kind = rows.bit_length()
        if kind not in self._trials:
            alone = 1 if self.max_threads == 1 else None
            self._trials[kind] = _ThreadTrial(
                self.max_threads, max(1, self.max_threads // 2), chosen=alone
            )
        return self._trials[kind]
