"""How many threads a step has: as many as are measured to be fastest.

A thread more means a few microseconds more at each meeting, of which a layer has several, and a
wait for whoever is late: on a small model, or a machine that does something else, fewer are faster.
"""

from __future__ import annotations

import dataclasses

_TRIES = 5  # steps of each of two numbers of threads, in turns
_KEPT = 1000  # steps after which it is measured again, for a machine may have become busy


@dataclasses.dataclass
class _Duel:
    """Two numbers of threads that are measured, and what came of it."""

    many: int
    few: int
    many_took: list[float] = dataclasses.field(default_factory=list)
    few_took: list[float] = dataclasses.field(default_factory=list)
    chosen: int | None = None
    left: int = _KEPT


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
        if duel.chosen is not None:
            return duel.chosen
        return duel.many if len(duel.many_took) <= len(duel.few_took) else duel.few

    def took(self, rows: int, threads: int, seconds: float) -> None:
        """What that step took."""
        duel = self._duel(rows)
        if duel.chosen is not None:
            duel.left -= 1
            if duel.left == 0:
                del self._duels[rows.bit_length()]
            return
        (duel.many_took if threads == duel.many else duel.few_took).append(seconds)
        if min(len(duel.many_took), len(duel.few_took)) < _TRIES:
            return
        # The least is what a step takes where nobody disturbs it.
        if min(duel.many_took) <= min(duel.few_took):
            duel.chosen = duel.many
        elif duel.few == 1:
            duel.chosen = 1
        else:
            self._duels[rows.bit_length()] = _Duel(duel.few, duel.few // 2)

    def _duel(self, rows: int) -> _Duel:
        kind = rows.bit_length()
        if kind not in self._duels:
            alone = 1 if self.most == 1 else None
            self._duels[kind] = _Duel(self.most, max(1, self.most // 2), chosen=alone)
        return self._duels[kind]
