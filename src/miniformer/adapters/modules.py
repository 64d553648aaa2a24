"""Modules of a model with adapters: a selection says which of them are in use.

A module gets its class here in place of its own, and keeps the names of its weights. A base without
adapters in use computes exactly what it did before.

Letters: B rows, T length, D model width, N adapters, F bottleneck width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniformer import registry
from miniformer.adapters.parts import Part
from miniformer.adapters.settings import BottleneckSettings
from miniformer.config import UserError
from miniformer.model.head import Head
from miniformer.model.ops.products import Linear, linear

# The adapter in use, none, or one for each row of a batch.
Selection = str | None | tuple[str | None, ...]


class Adapted(nn.Module):
    """Mixin of modules with adapters.

    Attributes:
        adapters: parts by name of the adapter.
        selection: see `Selection`.
        switches: a number that changes with the selection, by which copies of weights notice it.
    """

    adapters: nn.ModuleDict
    selection: Selection
    switches: Tensor

    def init_adapters(self) -> None:
        """Makes the attributes."""
        self.adapters, self.selection = nn.ModuleDict(), None
        parameter = next(self.parameters(), None)
        device = next(self.buffers()).device if parameter is None else parameter.device
        self.register_buffer("switches", torch.zeros(1, device=device), persistent=False)

    def select(self, selection: Selection) -> None:
        """Changes the adapters in use."""
        if selection != self.selection:
            self.selection = selection
            self.switches.add_(1)

    def part(self) -> Any:
        """The part in use; None: the base is.

        Raises:
            UserError: rows have different adapters.
        """
        if isinstance(self.selection, tuple):
            raise UserError(
                "the rows of a batch have different adapters, so the model has no single weights; "
                "call the model itself, or use one adapter"
            )
        name = self.selection
        return self.adapters[name] if name is not None and name in self.adapters else None

    def by_rows(self, x: Tensor) -> Tensor:
        """Calls the module for the rows of each adapter: [B, ...] -> [B, ...]."""
        selection = self.selection
        assert isinstance(selection, tuple)
        if len(x) != len(selection):
            raise ValueError(
                f"the batch has {len(x)} rows, but adapters are in use for {len(selection)}"
            )
        names = dict.fromkeys(selection)
        rows = [[n for n, own in enumerate(selection) if own == name] for name in names]
        outs = []
        for name, indices in zip(names, rows, strict=True):
            part = self.adapters[name] if name is not None and name in self.adapters else None
            outs.append(self.apply_part(part, x[indices]))
        order = torch.tensor([n for indices in rows for n in indices], device=x.device)
        return torch.cat(outs)[order.argsort()]

    def apply_part(self, part: Any, x: Tensor) -> Tensor:
        """Outputs with one part, or of the base."""
        raise NotImplementedError


class AdaptedMatrix(Adapted):
    """Mixin of modules that are a linear map, or a table, in evaluation.

    Attributes:
        merged: weight with the adapter in use, while it is merged.
    """

    merged: Tensor | None
    merged_bias: Tensor | None

    def init_adapters(self) -> None:
        """Makes the attributes."""
        super().init_adapters()
        self.register_buffer("merged", None, persistent=False)
        self.register_buffer("merged_bias", None, persistent=False)

    def base_weight(self) -> Tensor:
        """Weight without adapters."""
        weight = self._parameters["weight"]
        assert weight is not None
        return weight

    def base_bias(self) -> Tensor | None:
        """Bias without adapters."""
        return self._parameters.get("bias")

    def base_product(self, x: Tensor) -> Tensor:
        """Outputs without adapters and bias."""
        return linear(x, self.base_weight())

    def base_forward(self, x: Tensor) -> Tensor:
        """Outputs without adapters."""
        return linear(x, self.base_weight(), self.base_bias())

    def apply_part(self, part: Any, x: Tensor) -> Tensor:
        """See `Adapted`."""
        out: Tensor = self.base_forward(x) if part is None else part(self, x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Outputs with the adapters in use."""
        if self.merged is not None:
            return linear(x, self.merged, self.merged_bias)
        if isinstance(self.selection, tuple):
            return self.by_rows(x)
        return self.apply_part(self.part(), x)

    def effective_weight(self) -> Tensor:
        """Weight with the adapter in use; see `miniformer.model.ops.linear`."""
        if self.merged is not None:
            return self.merged
        part = self.part()
        return self.base_weight() if part is None else part.weight(self)

    @property
    def bias(self) -> Tensor | None:
        """Bias with the adapter in use."""
        part = None if self.merged is not None else self.part()
        if self.merged is not None:
            return self.merged_bias
        bias = self.base_bias()
        return bias if part is None else part.bias(bias)

    def merge(self) -> None:
        """Computes the weight with the adapter in use once."""
        bias = self.bias
        with torch.no_grad():
            self.merged_bias = None if bias is None else bias.detach().clone()
            self.merged = self.effective_weight().detach().clone()

    def unmerge(self) -> None:
        """Removes the computed weight; the base was never changed."""
        self.merged = self.merged_bias = None


class AdaptedLinear(AdaptedMatrix, nn.Linear):  # type: ignore[misc]
    """`nn.Linear` with adapters."""


class AdaptedEmbedding(AdaptedMatrix, nn.Embedding):
    """`nn.Embedding` with adapters."""

    def base_forward(self, x: Tensor) -> Tensor:
        """See `AdaptedMatrix`."""
        return F.embedding(x, self.base_weight())

    def forward(self, x: Tensor) -> Tensor:
        """Vectors with the adapters in use."""
        return F.embedding(x, self.merged) if self.merged is not None else super().forward(x)


class AdaptedHead(AdaptedMatrix, Head):  # type: ignore[misc]
    """Head of one matrix with adapters, which the methods of `Head` apply as its weight."""

    def forward(self, features: Tensor, embedding: Tensor | None) -> Tensor:  # type: ignore[override]
        """See `Head`."""
        return Head.forward(self, features, embedding)


class Bottleneck(nn.Module):
    """x + up(activation(down(x))), [..., D] -> [..., D]."""

    def __init__(self, width: int, settings: BottleneckSettings, like: Tensor) -> None:
        super().__init__()
        tensor_options: dict[str, Any] = {"device": like.device, "dtype": like.dtype}
        self.activation = registry.get("activation", settings.activation)
        self.down = nn.Linear(width, settings.size, **tensor_options)
        self.up = nn.Linear(settings.size, width, **tensor_options)
        nn.init.normal_(self.down.weight, std=0.01)
        nn.init.zeros_(self.up.weight)
        for layer in (self.down, self.up):
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        out: Tensor = x + self.up(self.activation(self.down(x)))
        return out


class BottleneckMixin(Adapted):
    """Mixin of sub-layers with a bottleneck after them."""

    def apply_part(self, part: Any, x: Tensor) -> Tensor:
        """See `Adapted`."""
        out: Tensor = x if part is None else part(x)
        return out

    def forward(self, *args: Any, **options: Any) -> Tensor:
        """Outputs of the sub-layer, changed by the adapter in use."""
        out: Tensor = super().forward(*args, **options)
        if isinstance(self.selection, tuple):
            return self.by_rows(out)
        return self.apply_part(self.part(), out)


def adapt_matrix(module: Any, name: str, part: Part) -> None:
    """Adds a part to a module; the module gets an adapted class."""
    if not isinstance(module, Adapted):
        for kind, adapted in (
            (nn.Linear, AdaptedLinear), (Linear, AdaptedLinear),
            (nn.Embedding, AdaptedEmbedding), (Head, AdaptedHead),
        ):  # fmt: skip
            if type(module) is kind:
                module.__class__ = adapted
        if hasattr(type(module), "adapted_class"):  # such as a quantized one
            module.__class__ = type(module).adapted_class()
        if not isinstance(module, Adapted):
            raise UserError(f"adapters cannot change a {type(module).__name__}")
        module.init_adapters()
    module.adapters[name] = part


def adapt_sublayer(module: Any, name: str, part: nn.Module) -> None:
    """Adds a bottleneck to a sub-layer, which gets a class of its own and the mixin."""
    if not isinstance(module, BottleneckMixin):
        kind = type(module)
        module.__class__ = type(f"Bottleneck{kind.__name__}", (BottleneckMixin, kind), {})
        module.init_adapters()
    module.adapters[name] = part
