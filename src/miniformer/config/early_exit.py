"""Settings of training with exits after each layer."""

from __future__ import annotations

import dataclasses
import math

from miniformer.config.strict import StrictConfig, option


@dataclasses.dataclass(frozen=True)
class EarlyExitConfig(StrictConfig):
    """Training for early exits (LayerSkip, Elhoushi et al. 2024): exit losses and layer dropout.

    Args:
        scale: weight of the losses of exits; in relation to the last layer, the exit after n of L
            layers has the weight `scale * n(n+1)/2 / (L + scale * L(L-1)/2)`.
        max_dropout: share of the rows of a batch that skip the last layer in training; it rises
            with depth from 0, as `max_dropout * (2 ** (l / (L - 1)) - 1)` for layer l from 0.
    """

    scale: float = option(0.2, above=0.0, high=100.0)
    max_dropout: float = option(0.1, low=0.0, high=0.9)

    def weights(self, num_layers: int) -> list[float]:
        """Weights of the exits after 1, 2, ... layers, without the last one."""
        last = num_layers + self.scale * num_layers * (num_layers - 1) / 2
        return [self.scale * n * (n + 1) / 2 / last for n in range(1, num_layers)]

    def dropout_rates(self, num_layers: int) -> list[float]:
        """Share of rows that skip each layer."""
        steps = max(1, num_layers - 1)
        return [
            self.max_dropout * math.expm1(layer * math.log(2) / steps)
            for layer in range(num_layers)
        ]
