"""Trained parts of adapters of linear maps: the product of LoRA and DoRA, and the factors of IA3.

A part changes the product of a base, `x @ weight.T + bias`, and gives the weight and the bias with
which a plain linear map has the same outputs.

Letters: O outputs, I inputs, R rank, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Part(nn.Module):
    """Base class of the parts of a linear map.

    `base` of the methods is the adapted module; it has `base_forward`, `base_weight`, `base_bias`.
    """

    def forward(self, base: Any, x: Tensor) -> Tensor:
        """Outputs of the adapted map: [..., I] -> [..., O]."""
        raise NotImplementedError

    def weight(self, base: Any) -> Tensor:
        """Weight of the adapted map in evaluation, [O, I]."""
        raise NotImplementedError

    def bias(self, bias: Tensor | None) -> Tensor | None:
        """Bias of the adapted map, [O], for that of the base."""
        return bias


class LoraPart(Part):
    """W + scale * B A; with `magnitude` its rows have the trained lengths (DoRA).

    Args:
        weight: weight of the base, [O, I]; it selects device and type.
        rank: R.
        scale: factor of the product.
        dropout: of the inputs of the product.
        init: see `LoraSettings`.
        dora: the lengths of the rows are trained.
    """

    def __init__(
        self, weight: Tensor, rank: int, scale: float, *, dropout: float, init: str, dora: bool
    ) -> None:
        super().__init__()
        rows, columns = weight.shape
        tensor_options: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
        self.scale = scale
        self.lora_A = nn.Parameter(torch.empty(rank, columns, **tensor_options))
        self.lora_B = nn.Parameter(torch.zeros(rows, rank, **tensor_options))
        self.dropout = nn.Dropout(dropout)
        self.magnitude: nn.Parameter | None = None
        if dora:
            self.magnitude = nn.Parameter(torch.linalg.norm(weight.detach(), dim=1))
        self.initial_A: Tensor | None
        self.initial_B: Tensor | None
        initial = (self.lora_A, self.lora_B) if init == "pissa" else None
        for name, factor in zip(("initial_A", "initial_B"), initial or (None, None), strict=True):
            self.register_buffer(name, None if factor is None else torch.zeros_like(factor))
        self.reset(weight.detach(), init)

    @torch.no_grad()
    def reset(self, weight: Tensor, init: str) -> None:
        """Sets the initial values of the product."""
        rank = len(self.lora_A)
        if init == "gaussian":
            nn.init.normal_(self.lora_A, std=1 / rank)
        elif init == "default":
            nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))
        elif not weight.is_meta:
            left, values, right = torch.linalg.svd(weight.float(), full_matrices=False)
            roots = (values[:rank] / self.scale).sqrt()
            self.lora_A.copy_(roots[:, None] * right[:rank])
            self.lora_B.copy_(left[:, :rank] * roots)
            assert self.initial_A is not None
            assert self.initial_B is not None
            self.initial_A.copy_(self.lora_A)
            self.initial_B.copy_(self.lora_B)

    def product(self, x: Tensor) -> Tensor:
        """scale * x A^T B^T, less the initial product."""
        out = F.linear(F.linear(x, self.lora_A), self.lora_B)
        if self.initial_A is not None and self.initial_B is not None:
            out = out - F.linear(F.linear(x, self.initial_A), self.initial_B)
        return out * self.scale

    def delta(self) -> Tensor:
        """The product as a matrix, [O, I]."""
        out: Tensor = self.lora_B @ self.lora_A
        if self.initial_A is not None and self.initial_B is not None:
            out = out - self.initial_B @ self.initial_A
        return out * self.scale

    def forward(self, base: Any, x: Tensor) -> Tensor:
        """See `Part`; without dropout, DoRA multiplies each output by length / norm of the row."""
        dropped = self.dropout(x) if self.training and self.dropout.p else x
        if self.magnitude is None:
            out: Tensor = base.base_forward(x)
            return out + self.product(dropped)
        factor, bias = self._row_factors(base.base_weight()), base.base_bias()
        out = base.base_forward(x)
        if dropped is x:
            product = out if bias is None else out - bias
        else:
            product = base.base_product(dropped)
        return out + ((factor - 1) * product + factor * self.product(dropped))

    def weight(self, base: Any) -> Tensor:
        """See `Part`."""
        weight: Tensor = base.base_weight()
        if self.magnitude is None:
            return weight + self.delta()
        factor = self._row_factors(weight)
        return factor[:, None] * (weight + self.delta())

    def _row_factors(self, weight: Tensor) -> Tensor:
        """Trained length of each row / its norm, [O]; the norm has no gradient, as in DoRA."""
        assert self.magnitude is not None
        norm = torch.linalg.norm((weight + self.delta()).detach(), dim=1)
        factors: Tensor = self.magnitude / norm
        return factors


class Ia3Part(Part):
    """Outputs, or inputs, multiplied by trained factors.

    Args:
        weight: weight of the base, [O, I].
        on_inputs: the factors are of the inputs.
    """

    def __init__(self, weight: Tensor, *, on_inputs: bool) -> None:
        super().__init__()
        rows, columns = weight.shape
        shape = (1, columns) if on_inputs else (rows, 1)
        self.on_inputs = on_inputs
        self.ia3_l = nn.Parameter(torch.ones(shape, device=weight.device, dtype=weight.dtype))

    def forward(self, base: Any, x: Tensor) -> Tensor:
        """See `Part`; the factors of outputs multiply the bias, too."""
        factors = self.ia3_l.flatten()
        if self.on_inputs:
            out: Tensor = base.base_forward(x * factors)
            return out
        out = base.base_forward(x)
        return out * factors

    def weight(self, base: Any) -> Tensor:
        """See `Part`."""
        weight: Tensor = base.base_weight()
        return weight * self.ia3_l

    def bias(self, bias: Tensor | None) -> Tensor | None:
        """See `Part`."""
        return bias if bias is None or self.on_inputs else bias * self.ia3_l.flatten()


class EmbeddingPart(Part):
    """Product of LoRA for an embedding, and trained rows of new tokens.

    Args:
        weight: weight of the embedding, [V, D].
        rank: R; 0: no product.
        scale: factor of the product.
        tokens: ids whose rows are trained.
    """

    def __init__(self, weight: Tensor, rank: int, scale: float, tokens: list[int]) -> None:
        super().__init__()
        tensor_options: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
        self.scale = scale
        self.lora_embedding_A = self.lora_embedding_B = self.rows = None
        if rank:
            self.lora_embedding_A = nn.Parameter(torch.zeros(rank, len(weight), **tensor_options))
            self.lora_embedding_B = nn.Parameter(
                torch.randn(weight.shape[1], rank, **tensor_options)
            )
        self.register_buffer("tokens", torch.tensor(tokens, device=weight.device), persistent=False)
        self.tokens: Tensor
        if tokens:
            self.rows = nn.Parameter(weight.detach()[self.tokens].clone())

    def forward(self, base: Any, x: Tensor) -> Tensor:
        """Vectors of token ids: int [...] -> [..., D]."""
        weight = base.base_weight()
        if self.rows is not None:
            weight = weight.index_copy(0, self.tokens, self.rows)
        out = F.embedding(x, weight)
        if self.lora_embedding_A is None or self.lora_embedding_B is None:
            return out
        product = F.embedding(x, self.lora_embedding_A.t()) @ self.lora_embedding_B.t()
        return out + product * self.scale

    def weight(self, base: Any) -> Tensor:
        """See `Part`; [V, D]."""
        weight: Tensor = base.base_weight()
        if self.rows is not None:
            weight = weight.index_copy(0, self.tokens, self.rows)
        if self.lora_embedding_A is not None and self.lora_embedding_B is not None:
            weight = weight + (self.lora_embedding_B @ self.lora_embedding_A).t() * self.scale
        return weight
