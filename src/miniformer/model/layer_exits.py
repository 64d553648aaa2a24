"""Exits after each layer in training: hidden states of a pass are taken, and replayed as outputs.

A task computes its loss from the outputs of the model. With the hidden states of its passes in
place of these outputs, the same code computes the loss of every exit, without a further pass
through the layers.

Letters: B batch, T length, D model width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor


class LayerExits:
    """Hidden states of the passes of one stack, and layers that rows of a batch skip in training.

    Args:
        dropout_rates: share of rows that skip each layer; empty: none do.
    """

    def __init__(self, dropout_rates: Sequence[float] = ()) -> None:
        self._rates = dropout_rates
        self._passes: list[list[Tensor]] = []  # outputs of the layers, by pass
        self._replayed: tuple[int, Iterator[list[Tensor]]] | None = None

    def start_pass(self) -> Tensor | None:
        """The output of a layer in place of a pass, [B, T, D]; None: the layers run."""
        if self._replayed is None:
            self._passes.append([])
            return None
        num_layers, passes = self._replayed
        return next(passes)[num_layers - 1]

    def after_layer(self, index: int, x: Tensor, out: Tensor, *, training: bool) -> Tensor:
        """Takes the output of a layer.

        Args:
            index: the layer.
            x: its input, [B, T, D].
            out: its output, [B, T, D].
            training: rows may skip the layer.

        Returns:
            `out`, or for rows that skip the layer `x`.
        """
        if training and self._rates and self._rates[index] > 0:
            stays = torch.rand(len(x), 1, 1, device=x.device) >= self._rates[index]
            out = torch.where(stays, out, x)
        self._passes[-1].append(out)
        return out

    @contextlib.contextmanager
    def replay(self, num_layers: int) -> Iterator[None]:
        """Context in which the passes are those before, ended after `num_layers` layers.

        0 stands for all layers.
        """
        self._replayed = num_layers, iter(self._passes)
        try:
            yield
        finally:
            self._replayed = None
