"""How many threads a step has: as many as are measured to be fastest.

A thread more means a few microseconds more at each meeting, of which a layer has several, and a
wait for whoever is late: on a small model, or a machine that does something else, fewer are faster.
"""

from __future__ import annotations

import dataclasses

_IN_A_ROW = 4  # steps with as many threads, of which the first does not count: others still wait
_ROUNDS = 2
_KEPT = 1000  # steps after which it is measured again, for a machine may have become busy


@dataclasses.dataclass
class _Duel:
    """Two numbers of threads that are measured, and the least that a step took with each."""

    many: int
    few: int
    least: dict[int, float] = dataclasses.field(default_factory=dict)
    steps: int = 0
    chosen: int | None = None

    def turn(self) -> int:
        """Whose turn it is."""
        return (self.many, self.few)[self.steps // _IN_A_ROW % 2]


class Tuning:
    """Chooses numbers of threads; steps of about as many rows have theirs in common.

    Args:
        most: threads that there may be.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._duels: dict[int, _Duel] = {}

    def threads(self, rows: int) -> int:
        """Threads for the next step of so many rows."""
        duel = self._duel(rows)
        return duel.turn() if duel.chosen is None else duel.chosen

    def took(self, rows: int, seconds: float) -> None:
        """What that step took."""
        duel, kind = self._duel(rows), rows.bit_length()
        if duel.chosen is None and duel.steps % _IN_A_ROW:
            # The least is what a step takes where nobody disturbs it.
            duel.least[duel.turn()] = min(seconds, duel.least.get(duel.turn(), seconds))
        duel.steps += 1
        if duel.chosen is not None:
            if duel.steps == _KEPT:
                del self._duels[kind]
        elif duel.steps == 2 * _IN_A_ROW * _ROUNDS:
            if duel.least[duel.many] <= duel.least[duel.few]:
                duel.chosen = duel.many
            elif duel.few == 1:
                duel.chosen = 1
            else:
                self._duels[kind] = _Duel(duel.few, duel.few // 2)

    def _duel(self, rows: int) -> _Duel:
        kind = rows.bit_length()
        if kind not in self._duels:
            alone = 1 if self.most == 1 else None
            self._duels[kind] = _Duel(self.most, max(1, self.most // 2), chosen=alone)
        return self._duels[kind]
