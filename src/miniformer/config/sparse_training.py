"""Settings of training with sparse weights."""

from __future__ import annotations

import dataclasses
import math

from miniformer.config.strict import StrictConfig, option

_OWN_FIELDS = {"rigl": ("drop_share", "initial"), "movement": ("start",)}


@dataclasses.dataclass(frozen=True)
class SparseTrainingConfig(StrictConfig):
    """Training with zeros in the matrices of the layers.

    Args:
        method: rigl (Evci et al. 2020): as sparse from the first step to the last, while small
            weights make room for those with large gradients; movement (Sanh et al. 2020): weights
            that move toward zero are removed, more and more of them.
        sparsity: share of the weights of all matrices of the layers that are zero at the end.
        distribution: uniform: each matrix has that share; erk: small matrices have fewer zeros
            (Erdos-Renyi kernel, Evci et al. 2020); null: erk for rigl, uniform for movement.
        interval: optimizer steps between changes of the masks; null: 100 for rigl, 10 for movement.
        end: share of the run after which rigl leaves the masks as they are, and at which movement
            reaches the sparsity; null: 0.75 for rigl, 0.7 for movement.
        drop_share: of rigl: share of the weights that are exchanged at first; it falls to 0 as a
            cosine; null: 0.3.
        initial: of rigl: first masks, random or by the magnitude of the weights; null: magnitude
            with init_from or pretrain, random for new weights.
        start: of movement: share of the run before the first weights are removed; null: 0.1.
    """

    method: str = option("rigl", choices=("rigl", "movement"))
    sparsity: float = option(0.8, above=0.0, high=0.99)
    distribution: str | None = option(None, choices=("erk", "uniform"))
    interval: int | None = option(None, low=1)
    end: float | None = option(None, above=0.0, high=0.95)
    drop_share: float | None = option(None, above=0.0, high=1.0)
    initial: str | None = option(None, choices=("random", "magnitude"))
    start: float | None = option(None, low=0.0, high=0.9)

    def cross_check(self) -> list[str]:
        """Also checks that options fit the method."""
        problems = super().cross_check()
        for method, names in _OWN_FIELDS.items():
            problems += [
                f"{name} is for {method}, not for {self.method}; leave it out"
                for name in names
                if method != self.method and getattr(self, name) is not None
            ]
        if self.method == "movement" and self.first_share >= self.last_share:
            problems.append(
                f"start={self.first_share:g} must be below end={self.last_share:g}, the share of "
                "the run at which the sparsity is reached"
            )
        return problems

    @property
    def uses_erk(self) -> bool:
        """True if small matrices have fewer zeros."""
        return (self.distribution or {"rigl": "erk"}.get(self.method)) == "erk"

    @property
    def steps_between(self) -> int:
        """Optimizer steps between changes of the masks."""
        return self.interval or {"rigl": 100, "movement": 10}[self.method]

    @property
    def first_share(self) -> float:
        """Share of the run before the first change of movement."""
        return 0.1 if self.start is None else self.start

    @property
    def last_share(self) -> float:
        """Share of the run after which rigl changes nothing, and movement is as sparse as asked."""
        return {"rigl": 0.75, "movement": 0.7}[self.method] if self.end is None else self.end

    def exchanged_share(self, progress: float) -> float:
        """Share of the weights that rigl exchanges: a cosine from `drop_share` to 0.

        Args:
            progress: completed share of the run.
        """
        first = 0.3 if self.drop_share is None else self.drop_share
        return first / 2 * (1 + math.cos(math.pi * min(1.0, progress / self.last_share)))

    def removed_share(self, progress: float) -> float:
        """Share of its final number of zeros that movement has reached (Zhu & Gupta 2017).

        Args:
            progress: completed share of the run.
        """
        if progress <= self.first_share:
            return 0.0
        remaining = (self.last_share - progress) / (self.last_share - self.first_share)
        return float(1.0 - max(0.0, remaining) ** 3)
